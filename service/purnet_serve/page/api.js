/**
 * One request to POST /v1/mask. XMLHttpRequest, as fetch does not report the progress of an upload.
 */

const SILENCE_MS = 120_000; // longer than the server gives any request

/** A request that gave no mask. Fields are those of the problem document, where there was one. */
export class Refusal extends Error {
  constructor({ code, status = 0, detail = "", limit, requestId = "", retryAfterS = 0 }) {
    super(detail || code);
    Object.assign(this, { code, status, detail, limit, requestId, retryAfterS });
  }
}

/**
 * Send `file` and resolve to `{blob, width, height, version, found, serverTiming, sentMs, totalMs}`,
 * `width` and `height` of the photo as displayed, in pixels. Rejects with a `Refusal`.
 *
 * `query` is that of /v1/mask; `onProgress` gets the part sent, 0 to 1.
 */
export function requestMask(file, { key = "", query = {}, onProgress = () => {}, signal } = {}) {
  return new Promise((resolve, reject) => {
    const url = new URL("../v1/mask", import.meta.url);
    url.search = new URLSearchParams(query);
    const request = new XMLHttpRequest();
    const started = performance.now();
    let sentMs = 0;
    const fail = (code) => () => reject(new Refusal({ code }));
    request.open("POST", url);
    request.responseType = "blob";
    request.timeout = SILENCE_MS;
    try {
      if (key) request.setRequestHeader("X-Api-Key", key);
    } catch {
      reject(new Refusal({ code: "key_unknown", status: 403 })); // no header can hold it
      return;
    }
    request.setRequestHeader("Content-Type", "application/octet-stream");
    request.upload.onprogress = (event) => {
      if (event.lengthComputable) onProgress(event.loaded / event.total);
    };
    request.upload.onload = () => {
      sentMs = performance.now() - started;
      onProgress(1);
    };
    request.onerror = fail("unreachable");
    request.ontimeout = fail("silent");
    request.onabort = fail("removed");
    request.onload = () => {
      if (request.status !== 200) {
        readRefusal(request).then(reject);
        return;
      }
      const header = (name) => request.getResponseHeader(name) ?? "";
      resolve({
        blob: request.response,
        width: Number(header("X-Width")),
        height: Number(header("X-Height")),
        version: header("X-Model-Version"),
        found: header("X-Foreground-Box") !== "",
        serverTiming: header("Server-Timing"),
        sentMs,
        totalMs: performance.now() - started,
      });
    };
    signal?.addEventListener("abort", () => request.abort());
    request.send(file);
    if (signal?.aborted) request.abort();
  });
}

async function readRefusal(request) {
  const { status } = request;
  let problem = {};
  try {
    problem = JSON.parse(await request.response.text());
  } catch {
    // A proxy's own page, in its own words.
  }
  return new Refusal({
    code: problem.code ?? "unknown",
    status,
    detail: problem.detail,
    limit: problem.limit,
    requestId: request.getResponseHeader("X-Request-Id") ?? "",
    retryAfterS: Number(request.getResponseHeader("Retry-After")) || 0,
  });
}
