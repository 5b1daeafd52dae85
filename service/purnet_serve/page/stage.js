/** The stage: one photo and its result with a divider between them, or how far it is, or why not. */

import { Refusal } from "./api.js";
import { listenToDivider } from "./divider.js";
import { bytes, seconds } from "./format.js";
import { originalOf, withPossibleBackdrop } from "./originals.js";
import { draw, screenCopy } from "./pictures.js";
import { inPlainWords } from "./refusals.js";

const AFTER = { mask: "Mask", cutout: "Cutout" };
const NOT_DISPLAYABLE_NOTE =
  "This browser cannot display this format, so the original shows only what the mask can keep, and " +
  "nothing can be blurred; mask and cutout come from the server and are complete.";
const FAINT_MASK_NOTE = "Nothing in this photo stands out clearly. The mask is faint.";

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
  /** Counts what was to be shown: what came too late for it is not shown. */
  #turn = 0;
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
    }
    this.#turn += 1;
    const turn = this.#turn;
    this.#describe(photo);
    let mask = null;
    try {
      if (photo.displayable || photo.result) {
        const original = await screenCopy(await originalOf(photo));
        if (turn !== this.#turn) return;
        if (original !== this.#original) this.#showOriginal(original);
      }
      if (photo.state === "done") mask = await screenCopy(photo.result.blob);
    } catch (error) {
      if (turn === this.#turn && photo.state === "done") this.#showFailure(photo, asRefusal(error));
      return;
    }
    if (turn !== this.#turn || !mask) return;
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
    const { view } = this.#wanted;
    this.#root.dataset.view = view;
    this.#root.querySelector(".tag-after").textContent = AFTER[view] ?? "";
    if (!this.#original || !this.#mask || view === "original") return;
    this.#resize(this.#after, this.#mask);
    const wanted = withPossibleBackdrop(this.#wanted, this.#photo);
    draw(this.#after, { photo: this.#original, mask: this.#mask }, wanted);
    this.#after.setAttribute("aria-label", `${AFTER[view]} of ${this.#photo.file.name}`);
    this.#root.dataset.backdrop = view === "mask" ? "none" : wanted.backdrop;
  }

  #resize(canvas, { width, height }) {
    if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
  }

  #describe(photo) {
    const { file, state, result, refusal } = photo;
    this.#before.setAttribute("aria-label", `Original of ${file.name}`);
    const size = result ? `, ${result.width} × ${result.height} pixels` : "";
    document.getElementById("caption").textContent =
      `${file.name}${size}, ${bytes(file.size)}${result ? `, by ${result.version}` : ""}`;
    const notes = [];
    if (result && !photo.displayable) notes.push(NOT_DISPLAYABLE_NOTE);
    if (result && !result.found) notes.push(FAINT_MASK_NOTE);
    const note = document.getElementById("note");
    note.textContent = notes.join(" ");
    note.hidden = notes.length === 0;
    if (["failed", "needsKey", "pausing"].includes(state)) {
      this.#showFailure(photo, refusal);
    } else if (state !== "done" || !this.#mask) {
      this.#root.dataset.phase = "busy";
      this.#write(".busy p", state === "done" ? "Opening" : progressText(photo));
      const bar = this.#root.querySelector(".busy progress");
      if (state === "sending") bar.value = photo.progress;
      else bar.removeAttribute("value");
    }
  }

  #showFailure({ file, state, secondsLeft }, refusal) {
    const { title, text, canRetry } = inPlainWords(refusal, file);
    const isPausing = state === "pausing";
    this.#root.dataset.phase = "failure";
    this.#write(".failure h2", title);
    this.#write(".reason", text);
    this.#write(".countdown", isPausing ? `Trying again in ${seconds(secondsLeft)}.` : "");
    this.#write(".trace", refusal.requestId && `${refusal.code}, request ${refusal.requestId}`);
    const retry = this.#root.querySelector("[data-retry]");
    retry.textContent = isPausing ? "Try now" : "Try again";
    retry.hidden = !canRetry || state === "needsKey";
  }

  #write(selector, text) {
    this.#root.querySelector(selector).textContent = text;
  }
}

/** Why a result is not on the screen: the server refused a cutout, or else the browser a picture. */
function asRefusal(error) {
  return error instanceof Refusal ? error : new Refusal({ code: "not_displayable" });
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
