/**
 * One request to POST /v1/mask. XMLHttpRequest, as fetch does not report the progress of an upload.
 */

const INACTIVITY_TIMEOUT_MS = 120_000; // without a byte sent or received

/** A request that gave no mask. Fields are those of the problem document, where there was one. */
export class Refusal extends Error {
  constructor({ code, status = 0, detail = "", limit, requestId = "", retryAfterS = 0 }) {
    super(detail || code);
    Object.assign(this, { code, status, detail, limit, requestId, retryAfterS });
  }
}

/**
 * Send `file` and resolve to `{blob, width, height, version, found, serverTiming, totalMs}`,
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
    const fail = (code) => reject(new Refusal({ code }));
    // Not `request.timeout`, which would count a long upload over a slow connection as well.
    let timer = 0;
    const restartTimer = () => {
      clearTimeout(timer);
      timer = setTimeout(() => {
        fail("timeout");
        request.abort();
      }, INACTIVITY_TIMEOUT_MS);
    };
    request.open("POST", url);
    request.responseType = "blob";
    try {
      if (key) request.setRequestHeader("X-Api-Key", key);
    } catch {
      reject(new Refusal({ code: "key_unknown", status: 403 })); // no header can hold it
      return;
    }
    request.setRequestHeader("Content-Type", "application/octet-stream");
    request.upload.onprogress = (event) => {
      restartTimer();
      if (event.lengthComputable) onProgress(event.loaded / event.total);
    };
    request.upload.onload = () => {
      restartTimer();
      onProgress(1);
    };
    request.onprogress = restartTimer;
    request.onloadend = () => clearTimeout(timer);
    request.onerror = async () => fail((await isReadable(file)) ? "unreachable" : "file_unreadable");
    request.onabort = () => fail("removed");
    request.onload = () => {
      // A proxy before the server may answer 200 with a page of its own.
      if (request.status !== 200 || !request.response?.type.startsWith("image/")) {
        readRefusal(request).then(reject, reject);
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
        totalMs: performance.now() - started,
      });
    };
    signal?.addEventListener("abort", () => request.abort());
    restartTimer();
    request.send(file);
    if (signal?.aborted) request.abort();
  });
}

async function readRefusal(request) {
  const problem = await readProblem(request.response);
  return new Refusal({
    code: problem.code ?? "unknown",
    status: request.status,
    detail: problem.detail,
    limit: problem.limit,
    requestId: request.getResponseHeader("X-Request-Id") ?? "",
    retryAfterS: Number(request.getResponseHeader("Retry-After")) || 0,
  });
}

/** The problem document of an error; {} where a proxy answered in its own words. */
async function readProblem(blob) {
  try {
    const value = JSON.parse(await blob.text());
    return value instanceof Object ? value : {};
  } catch {
    return {};
  }
}

/** Whether the browser can still read a file. A request fails in the same way if not. */
function isReadable(file) {
  return file.slice(0, 1).arrayBuffer().then(() => true, () => false);
}
