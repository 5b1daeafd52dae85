/**
 * Photos in a row. Each goes through these states:
 *
 *   waiting > sending > working > done
 *                               > pausing (the server said when to come again) > sending
 *                               > locked  (the server asks for a key)          > waiting
 *                               > failed  (a person may try again)             > waiting
 */

import { Refusal, requestMask } from "./api.js";
import { canShow } from "./pictures.js";

const AT_ONCE = 2; // one is sent while the network works on the other
const MOST_TRIES = 20;
const KEY_CODES = ["key_missing", "key_unknown"];
const SECOND_MS = 1000;

/** One photo: what was chosen, how far it is, and its result or its refusal. */
class Photo {
  state = "waiting";
  /** The API key it was sent with last. */
  key = "";
  /** Part that is sent, 0 to 1. */
  progress = 0;
  /** Whole seconds until it is sent again, while `pausing`. */
  secondsLeft = 0;
  tries = 0;
  /** What `requestMask` resolved to. */
  result = null;
  /** The `Refusal` it met last. */
  refusal = null;
  /**
   * What stands for the photo where the browser cannot show its format: the server's cutout by the
   * lowest threshold, which holds every pixel that any mask can show. Else the file itself.
   */
  picture = null;
  /** Whether `picture` is the photo as it was chosen. */
  shown = true;
  cancel = new AbortController();
  /** Ends a pause. */
  wake = () => {};

  constructor(file) {
    this.file = file;
    this.picture = file;
  }
}

export class Queue {
  #getKey;
  #changed;
  #photos = [];
  #running = 0;

  /** `getKey()` gives the API key or ""; `changed(photo)` is called whenever a photo changes. */
  constructor({ getKey, changed }) {
    this.#getKey = getKey;
    this.#changed = changed;
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
  }

  /** Send a photo again that failed, or that waits for its time. */
  retry(photo) {
    photo.tries = 0;
    if (photo.state === "pausing") photo.wake();
    else if (["failed", "locked"].includes(photo.state)) this.#move(photo, "waiting");
    this.#next();
  }

  /** Send all photos again that a key was missing for. */
  unlock() {
    this.#photos.filter((photo) => photo.state === "locked").forEach((photo) => this.retry(photo));
  }

  #move(photo, state) {
    photo.state = state;
    this.#changed(photo);
  }

  #next() {
    const photo = this.#photos.find((one) => one.state === "waiting");
    if (!photo || this.#running >= AT_ONCE) return;
    this.#running += 1;
    this.#run(photo).finally(() => {
      this.#running -= 1;
      this.#next();
    });
    this.#next();
  }

  /** Send one photo until it is done or refused for good. */
  async #run(photo) {
    for (;;) {
      try {
        await this.#send(photo);
        this.#move(photo, "done");
        return;
      } catch (refusal) {
        if (!(refusal instanceof Refusal)) throw refusal;
        photo.refusal = refusal;
        photo.tries += 1;
        const isKey = KEY_CODES.includes(refusal.code);
        // Another one may have been entered since this photo was sent.
        if (isKey && photo.key !== this.#getKey() && photo.tries < MOST_TRIES) continue;
        const comesAgain = [429, 503].includes(refusal.status) && refusal.retryAfterS > 0;
        if (!comesAgain || photo.tries >= MOST_TRIES || photo.cancel.signal.aborted) {
          this.#move(photo, isKey ? "locked" : "failed");
          return;
        }
        await this.#pause(photo, refusal.retryAfterS);
        if (photo.cancel.signal.aborted) return;
      }
    }
  }

  async #send(photo) {
    photo.key = this.#getKey();
    const request = { key: photo.key, signal: photo.cancel.signal };
    photo.progress = 0;
    this.#move(photo, "sending");
    const onProgress = (part) => {
      photo.progress = part;
      this.#move(photo, part < 1 ? "sending" : "working");
    };
    const [result, shown] = await Promise.all([
      requestMask(photo.file, { ...request, onProgress }),
      canShow(photo.file),
    ]);
    if (!shown) {
      const query = { output: "cutout", threshold: 1 };
      photo.picture = (await requestMask(photo.file, { ...request, query })).blob;
    }
    photo.shown = shown;
    photo.result = result;
    photo.refusal = null;
  }

  /** Wait for `retryAfterS` seconds, counting them down. */
  #pause(photo, retryAfterS) {
    photo.secondsLeft = retryAfterS;
    this.#move(photo, "pausing");
    return new Promise((resolve) => {
      const timer = setInterval(() => {
        photo.secondsLeft -= 1;
        if (photo.secondsLeft > 0) this.#changed(photo);
        else photo.wake();
      }, SECOND_MS);
      photo.wake = () => {
        clearInterval(timer);
        resolve();
      };
    });
  }
}
