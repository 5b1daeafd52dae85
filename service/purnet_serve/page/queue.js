/**
 * Photos in a row. Each goes through these states:
 *
 *   waiting > sending > working > done
 *                               > pausing  (it is sent again after a while)  > sending
 *                               > needsKey (the server asks for a key)       > waiting
 *                               > failed   (a person may try again)          > waiting
 */

import { Refusal, requestMask } from "./api.js";
import { originalOf } from "./originals.js";
import { isDisplayable } from "./pictures.js";

const AT_ONCE = 2; // one is sent while the network works on the other
const RETRY_LIMIT_MS = 180_000; // a server that starts on a GPU is not ready for up to a minute
const MAX_RECONNECT_S = 10;
const KEY_CODES = ["key_missing", "key_unknown"];
const SECOND_MS = 1000;

/** One photo: what was chosen, how far it is, and its result or its refusal. */
class Photo {
  state = "waiting";
  /** The API key it was sent with last. */
  key = "";
  /** Part that is sent, 0 to 1. */
  progress = 0;
  /** Pauses since a person or the browser last asked for it. */
  pauses = 0;
  /** When it is sent again, while `pausing`, in ms since 1970. */
  dueMs = 0;
  /** From when on no pause follows a refusal, in ms since 1970; null before the first refusal. */
  retryUntilMs = null;
  /** What `requestMask` resolved to. */
  result = null;
  /** The `Refusal` it met last. */
  refusal = null;
  /** Whether the browser can display the file; assumed until it has tried. */
  displayable = true;
  cancel = new AbortController();
  /** Ends a pause. */
  wake = () => {};

  constructor(file) {
    this.file = file;
  }

  /** Whole seconds until it is sent again, while `pausing`. */
  get secondsLeft() {
    return Math.max(0, Math.ceil((this.dueMs - Date.now()) / SECOND_MS));
  }
}

export class Queue {
  #getKey;
  #changed;
  #entered;
  #photos = [];
  #running = 0;

  /**
   * `getKey()` gives the API key or ""; `changed(photo)` is called whenever a photo changes, and
   * `entered(photo)` after that when it has come into another state.
   */
  constructor({ getKey, changed, entered }) {
    this.#getKey = getKey;
    this.#changed = changed;
    this.#entered = entered;
  }

  get photos() {
    return [...this.#photos];
  }

  /** Put files at the end; returns their photos. */
  add(files) {
    const added = files.map((file) => new Photo(file));
    this.#photos.push(...added);
    added.forEach(this.#changed);
    this.#next();
    return added;
  }

  remove(photo) {
    this.#photos = this.#photos.filter((one) => one !== photo);
    photo.cancel.abort();
    photo.wake();
    this.#next();
  }

  /** Send a photo again that failed, or that waits for its time or for a key. */
  retry(photo) {
    photo.pauses = 0;
    photo.retryUntilMs = null;
    if (photo.state === "pausing") photo.wake();
    else if (["failed", "needsKey"].includes(photo.state)) this.#move(photo, "waiting");
    this.#next();
  }

  /** A key was entered: send all photos again that need one, and those that waited for them. */
  useKey() {
    for (const photo of this.#photos) {
      if (photo.state === "needsKey") this.retry(photo);
    }
  }

  /** The network is back: send all photos again that could not reach the server. */
  reconnect() {
    for (const photo of this.#photos) {
      if (photo.state === "pausing" && photo.refusal.code === "unreachable") this.retry(photo);
    }
  }

  #move(photo, state) {
    const isAnother = photo.state !== state;
    photo.state = state;
    this.#changed(photo);
    if (isAnother) this.#entered(photo);
  }

  #next() {
    // While a key is needed, the server would take the photos only to refuse each.
    if (this.#photos.some((one) => one.state === "needsKey")) return;
    const photo = this.#photos.find((one) => one.state === "waiting");
    if (!photo || this.#running >= AT_ONCE) return;
    this.#running += 1;
    this.#run(photo).finally(() => {
      this.#running -= 1;
      this.#next();
    });
    this.#next();
  }

  /** Send one photo until it is done, needs a key, or is refused for good. */
  async #run(photo) {
    for (;;) {
      try {
        await this.#send(photo);
      } catch (error) {
        if (photo.cancel.signal.aborted) return;
        photo.refusal = asRefusal(error);
        if (KEY_CODES.includes(photo.refusal.code)) {
          const key = this.#getKey();
          if (key !== "" && key !== photo.key) continue; // it was entered since this photo was sent
          this.#move(photo, "needsKey");
          return;
        }
        photo.retryUntilMs ??= Date.now() + RETRY_LIMIT_MS;
        const waitS = secondsToWait(photo);
        if (waitS === 0) {
          this.#move(photo, "failed");
          return;
        }
        await this.#pause(photo, waitS);
        if (photo.cancel.signal.aborted) return;
        continue;
      }
      this.#move(photo, "done");
      return;
    }
  }

  async #send(photo) {
    photo.key = this.#getKey();
    photo.progress = 0;
    this.#move(photo, "sending");
    const onProgress = (part) => {
      photo.progress = part;
      this.#move(photo, part < 1 ? "sending" : "working");
    };
    const [result] = await Promise.all([
      requestMask(photo.file, { key: photo.key, onProgress, signal: photo.cancel.signal }),
      this.#tryToDisplay(photo),
    ]);
    if (!photo.displayable) await originalOf(photo);
    photo.result = result;
    photo.refusal = null;
  }

  async #tryToDisplay(photo) {
    photo.displayable = await isDisplayable(photo.file);
    this.#changed(photo);
  }

  /** Wait for `waitS` seconds, counting them down, or until the photo is woken. */
  #pause(photo, waitS) {
    photo.pauses += 1;
    photo.dueMs = Date.now() + waitS * SECOND_MS;
    return new Promise((resolve) => {
      let timer = 0;
      // By the clock: a browser slows the timers of a page that is hidden.
      const check = () => {
        clearTimeout(timer);
        const leftMs = photo.dueMs - Date.now();
        if (leftMs <= 0) {
          photo.wake();
          return;
        }
        this.#move(photo, "pausing");
        timer = setTimeout(check, leftMs % SECOND_MS || SECOND_MS);
      };
      photo.wake = () => {
        clearTimeout(timer);
        document.removeEventListener("visibilitychange", check);
        resolve();
      };
      document.addEventListener("visibilitychange", check);
      check();
    });
  }
}

/** Seconds until a photo is sent again by itself after its refusal; 0 if it is not. */
function secondsToWait({ refusal, pauses, retryUntilMs }) {
  const leftMs = retryUntilMs - Date.now();
  if (refusal.code === "unreachable") {
    // A computer without a network says nothing about the server.
    return leftMs <= 0 && navigator.onLine ? 0 : Math.min(MAX_RECONNECT_S, 2 ** pauses);
  }
  const waitS = [429, 503].includes(refusal.status) ? refusal.retryAfterS : 0;
  return waitS > 0 && waitS * SECOND_MS <= leftMs ? waitS : 0;
}

function asRefusal(error) {
  if (error instanceof Refusal) return error;
  console.error(error); // a fault of this page; no one else has the reason
  return new Refusal({ code: "page_failed" });
}
