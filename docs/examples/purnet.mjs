// PurNet Serve from JavaScript: browsers, Node 18 and later, Deno, Bun. Nothing to install.
//
// In a page of another origin, PURNET_CORS_ORIGINS must name that origin.

const RETRIED = new Set([429, 503]); // too much to do, or not ready: the service says when to come again

/** An error of the service: `code` is stable (docs/api.md), `requestId` is in its log. */
export class PurNetError extends Error {
  constructor(problem, status, requestId) {
    super(problem.detail ?? `The answer was HTTP ${status}.`);
    this.name = "PurNetError";
    this.code = problem.code;
    this.status = status;
    this.requestId = requestId;
  }
}

/**
 * Find the salient object of a photo.
 *
 * @param {string} url where the service listens, such as "http://127.0.0.1:8000"
 * @param {Blob} photo a File of an <input>, what fetch(...).blob() gives, or a Blob of a file's bytes
 * @param {object} [options] the parameters of POST /v1/mask, such as {output: "cutout"}; `apiKey`;
 *   `timeoutMs`, the time for all attempts together
 * @returns {Promise<{picture: Blob, box: number[] | null, model: string}>} a PNG: the mask, or the
 *   cutout; left, top, right, bottom of the object; and who answered
 */
export async function findObject(url, photo, { apiKey, timeoutMs = 30_000, ...parameters } = {}) {
  const until = Date.now() + timeoutMs;
  const address = `${url.replace(/\/$/, "")}/v1/mask?${new URLSearchParams(parameters)}`;
  for (;;) {
    const left = Math.max(until - Date.now(), 100);
    const headers = { "X-Timeout-Ms": String(Math.min(left, 60_000)) };
    if (apiKey) headers["X-Api-Key"] = apiKey;
    const signal = AbortSignal.timeout(left + 2_000);
    const answer = await fetch(address, { method: "POST", body: photo, headers, signal });
    if (answer.ok) {
      const box = answer.headers.get("X-Foreground-Box");
      return {
        picture: await answer.blob(),
        box: box ? box.split(",").map(Number) : null,
        model: answer.headers.get("X-Model-Version"),
      };
    }
    const problem = await answer.json().catch(() => ({}));
    // Up to a third longer, so that clients refused together do not come back together.
    const waitMs = 1_000 * Number(answer.headers.get("Retry-After") ?? 1) * (1 + Math.random() / 3);
    if (!RETRIED.has(answer.status) || Date.now() + waitMs >= until) {
      throw new PurNetError(problem, answer.status, answer.headers.get("X-Request-Id"));
    }
    await new Promise((resolve) => setTimeout(resolve, waitMs));
  }
}
