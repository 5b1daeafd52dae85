/** The photos in a row, each with its progress or its error; one of them is on the stage. */

import { originalOf } from "./originals.js";
import { resized, screenCopy } from "./pictures.js";
import { progressText } from "./stage.js";

const THUMBNAIL_SIDE = 192;

export class Strip {
  #list;
  #select;
  #entries = new Map();

  /** `select(photo)` is called when a person chooses one. */
  constructor(list, select) {
    this.#list = list;
    this.#select = select;
  }

  /** Show a photo's state, at the end of the row when it is new. */
  update(photo) {
    const entry = this.#entries.get(photo) ?? this.#add(photo);
    entry.button.dataset.state = photo.state;
    entry.button.style.setProperty("--progress", photo.progress);
    entry.state.textContent = progressText(photo);
    const source = photo.displayable ? "file" : "cutout";
    const isThere = photo.displayable ? photo.state !== "waiting" : photo.result !== null;
    if (isThere && entry.source !== source) {
      entry.source = source;
      this.#draw(photo, entry);
    }
  }

  remove(photo) {
    this.#entries.get(photo)?.item.remove();
    this.#entries.delete(photo);
  }

  /** Mark the photo that is on the stage, and bring it into view. */
  mark(photo) {
    for (const [one, { button }] of this.#entries) {
      button.setAttribute("aria-current", one === photo);
    }
    this.#entries.get(photo)?.item.scrollIntoView({ block: "nearest", inline: "nearest" });
  }

  focus(photo) {
    this.#entries.get(photo)?.button.focus();
  }

  #add(photo) {
    const make = (tag, className, ...children) => {
      const element = document.createElement(tag);
      element.className = className;
      element.append(...children);
      return element;
    };
    const thumbnail = make("canvas", "thumbnail");
    thumbnail.width = thumbnail.height = 1;
    const state = make("span", "state");
    const button = make(
      "button", "photo", thumbnail, make("span", "name", photo.file.name), state, make("span", "fill"),
    );
    button.type = "button";
    button.addEventListener("click", () => this.#select(photo));
    const item = make("li", "", button);
    const entry = { item, button, thumbnail, state, source: null };
    this.#entries.set(photo, entry);
    this.#list.append(item);
    return entry;
  }

  async #draw(photo, { thumbnail }) {
    try {
      const picture = resized(await screenCopy(await originalOf(photo)), THUMBNAIL_SIDE);
      Object.assign(thumbnail, { width: picture.width, height: picture.height });
      thumbnail.getContext("2d").drawImage(picture, 0, 0);
    } catch {
      // A format that this browser cannot display; its name stays.
    }
  }
}
