/** The stage: one photo and its result with a divider between them, or how far it is, or why not. */

import { listenToDivider } from "./divider.js";
import { bytes, seconds } from "./format.js";
import { draw, screenCopy } from "./pictures.js";
import { inPlainWords } from "./refusals.js";

const AFTER = { mask: "Mask", cutout: "Cutout" };
const UNSHOWN =
  "This browser cannot display this format, so the original shows only what the mask can keep; " +
  "mask and cutout come from the server and are complete.";
const FAINT = "Nothing in this photo stands out clearly. The mask is faint.";

export class Stage {
  #root;
  #before;
  #after;
  #photo = null;
  /** Copies for the screen of what is shown. */
  #original = null;
  #mask = null;
  #wanted;
  #frame = 0;
  #revealed = new WeakSet();

  constructor(root, wanted) {
    this.#root = root;
    this.#wanted = wanted;
    this.#before = root.querySelector(".before");
    this.#after = root.querySelector(".after canvas");
    listenToDivider(root.querySelector(".frame"), root.querySelector(".divider"), (percent) => {
      root.classList.remove("reveal");
      root.style.setProperty("--split", `${percent}%`);
    });
  }

  /** Show a photo and, when there is one, its result. May be called whenever the photo changes. */
  async show(photo) {
    if (photo !== this.#photo) {
      this.#photo = photo;
      this.#original = this.#mask = null;
      this.#root.classList.remove("pictured", "reveal");
      this.#root.dataset.phase = "busy";
    }
    this.#describe(photo);
    const original = await copyOf(photo.shown || photo.result ? photo.picture : null);
    if (photo !== this.#photo) return;
    if (original && original !== this.#original) this.#showOriginal(original);
    const mask = await copyOf(photo.result?.blob);
    if (photo !== this.#photo || photo.state !== "done" || !mask) return;
    this.#mask = mask;
    this.#root.dataset.phase = "done";
    this.#paint();
    if (!this.#revealed.has(photo)) this.#root.classList.add("reveal"); // the divider sweeps in, once
    this.#revealed.add(photo);
  }

  /** Draw again as `wanted` says: `{view, threshold, backdrop, colour}`. */
  redraw(wanted) {
    this.#wanted = wanted;
    cancelAnimationFrame(this.#frame);
    this.#frame = requestAnimationFrame(() => this.#paint());
  }

  #showOriginal(original) {
    this.#original = original;
    this.#resize(this.#before, original);
    this.#before.getContext("2d").drawImage(original, 0, 0);
    this.#root.style.setProperty("--ratio", original.width / original.height);
    this.#root.classList.add("pictured");
  }

  #paint() {
    const { view, backdrop } = this.#wanted;
    this.#root.dataset.view = view;
    this.#root.querySelector(".tag-after").textContent = AFTER[view] ?? "";
    if (!this.#original || !this.#mask || view === "original") return;
    this.#resize(this.#after, this.#mask);
    draw(this.#after, { photo: this.#original, mask: this.#mask }, this.#wanted);
    this.#after.setAttribute("aria-label", `${AFTER[view]} of ${this.#photo.file.name}`);
    this.#root.dataset.backdrop = view === "mask" ? "none" : backdrop;
  }

  #resize(canvas, { width, height }) {
    if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
  }

  #describe(photo) {
    const { file, state, result, refusal } = photo;
    const say = (selector, text) => (this.#root.querySelector(selector).textContent = text);
    this.#before.setAttribute("aria-label", `Original of ${file.name}`);
    const size = result ? `, ${result.width} × ${result.height} pixels` : "";
    document.getElementById("caption").textContent =
      `${file.name}${size}, ${bytes(file.size)}${result ? `, by ${result.version}` : ""}`;
    const notes = result ? [!photo.shown && UNSHOWN, !result.found && FAINT].filter(Boolean) : [];
    const note = document.getElementById("note");
    note.textContent = notes.join(" ");
    note.hidden = notes.length === 0;
    if (["failed", "locked", "pausing"].includes(state)) {
      const { title, text, canRetry } = inPlainWords(refusal, file);
      const isPausing = state === "pausing";
      this.#root.dataset.phase = "failure";
      say(".failure h2", title);
      say(".reason", text);
      say(".countdown", isPausing ? `Trying again in ${seconds(photo.secondsLeft)}.` : "");
      say(".trace", refusal.requestId && `${refusal.code}, request ${refusal.requestId}`);
      const retry = this.#root.querySelector("[data-retry]");
      retry.textContent = isPausing ? "Try now" : "Try again";
      retry.hidden = !canRetry || state === "locked";
    } else if (state !== "done") {
      this.#root.dataset.phase = "busy";
      say(".busy p", progressText(photo));
      const bar = this.#root.querySelector(".busy progress");
      if (state === "sending") bar.value = photo.progress;
      else bar.removeAttribute("value");
    }
  }
}

/** A copy of a file's picture for the screen; null where there is none, or none can be shown. */
function copyOf(file) {
  return file ? screenCopy(file).catch(() => null) : null;
}

/** How far a photo is, in a few words. */
export function progressText({ state, progress, secondsLeft, refusal, file }) {
  switch (state) {
    case "waiting":
      return "Waiting";
    case "sending":
      return `Sending, ${Math.round(progress * 100)} %`;
    case "working":
      return "Finding the object";
    case "pausing":
      return `Again in ${seconds(secondsLeft)}`;
    case "done":
      return "Done";
    default:
      return inPlainWords(refusal, file).title;
  }
}
