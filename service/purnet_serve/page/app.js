/** The page: photos come in, go through the queue, and are shown, downloaded and copied. */

import { Refusal, requestMask } from "./api.js";
import { stem } from "./format.js";
import { listenForPhotos } from "./intake.js";
import { forgetKey, getKey, keepKey } from "./key.js";
import { originalOf, withPossibleBackdrop } from "./originals.js";
import { fullSizePng } from "./pictures.js";
import { Queue } from "./queue.js";
import { inPlainWords } from "./refusals.js";
import { Stage } from "./stage.js";
import { Strip } from "./strip.js";
import { showTimings } from "./timings.js";

const STATUS_MS = 6000;
const SLOW_PIXELS = 8e6; // making a PNG of more takes seconds

const find = (selector) => document.querySelector(selector);
const wanted = { view: "cutout", threshold: 0, backdrop: "none", colour: find("#colour").value };
const stage = new Stage(find("#stage"), wanted);
const strip = new Strip(find("#strip"), select);
const queue = new Queue({ getKey, changed, entered });
let current = null;
let fading = 0;

listenForPhotos({ take, say });
listenToControls();
listenToKeys();
addEventListener("online", () => queue.reconnect());

function take(files) {
  const photos = queue.add(files);
  select(photos[0]);
}

/** Put a photo on the stage. */
function select(photo) {
  const isFirst = current === null;
  current = photo;
  find("#welcome").hidden = photo !== null;
  find("#workspace").hidden = photo === null;
  if (!photo) {
    find("#welcome button").focus();
    return;
  }
  strip.mark(photo);
  showCurrent();
  if (isFirst) strip.focus(photo); // what was focused is gone from the page
}

/** A photo moved on: show it in the row, and on the stage if it is there. */
function changed(photo) {
  if (photo.cancel.signal.aborted) return;
  strip.update(photo);
  if (photo === current) showCurrent();
}

/** A photo came into another state: say what matters. */
function entered(photo) {
  if (photo.cancel.signal.aborted) return;
  const { name } = photo.file;
  if (photo.state === "done") say(`${name}: the mask is ready.`);
  if (photo.state === "failed") say(`${name}: ${inPlainWords(photo.refusal, photo.file).title}.`);
  if (photo.state === "pausing" && photo.pauses === 1) { // not at each of many pauses
    say(`${name}: ${inPlainWords(photo.refusal, photo.file).title}. It is tried again soon.`);
  }
  if (photo.state === "needsKey") askForKey(photo);
}

function showCurrent() {
  const { result } = current;
  const retry = find("[data-retry]");
  const hasFocus = document.activeElement === retry;
  stage.show(current);
  if (hasFocus && retry.offsetParent === null) { // it is hidden now
    find(".show").focus({ preventScroll: true }); // the button is next when it comes back
  }
  find("#timings").hidden = !result;
  if (result) showTimings(find("#timings"), result);
  const blur = find("[name=backdrop][value=blur]");
  blur.disabled = !current.displayable;
  for (const button of document.querySelectorAll("[data-download], [data-copy]")) {
    button.disabled = current.state !== "done";
  }
}

function listenToControls() {
  const show = () => {
    wanted.view = find("[name=view]:checked").value;
    wanted.backdrop = find("[name=backdrop]:checked").value;
    wanted.threshold = Number(find("#threshold").value);
    wanted.colour = find("#colour").value;
    const words = wanted.threshold === 0 ? "soft edge" : `${wanted.threshold} and more`;
    find("#threshold-value").textContent = words;
    find("#threshold").setAttribute("aria-valuetext", words);
    find("#colour-control").hidden = wanted.backdrop !== "colour";
    find("[data-download]").textContent = `Download ${outputName()}`;
    stage.redraw({ ...wanted });
  };
  find(".panel").addEventListener("input", show);
  show(); // a browser that goes back to this page restores the controls
  find("[data-retry]").addEventListener("click", () => {
    if (current.state === "done") showCurrent(); // only showing it failed
    else queue.retry(current);
  });
  find("[data-remove]").addEventListener("click", () => {
    const place = queue.photos.indexOf(current);
    queue.remove(current);
    strip.remove(current);
    const next = queue.photos[place] ?? queue.photos[place - 1] ?? null;
    select(next);
    if (next) strip.focus(next);
  });
  find("[data-download]").addEventListener("click", (event) => withBusy(event.target, download));
  find("[data-copy]").addEventListener("click", (event) => withBusy(event.target, copy));
}

/** What downloading and copying give: where the original is shown, its cutout. */
function outputName() {
  return wanted.view === "mask" ? "mask" : "cutout";
}

async function download(photo) {
  const name = outputName();
  const link = document.createElement("a");
  link.href = URL.createObjectURL(await output(photo, name));
  link.download = `${stem(photo.file.name)}-${name}.png`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), STATUS_MS);
}

async function copy(photo) {
  const name = outputName();
  if (!navigator.clipboard?.write) {
    say("This browser copies pictures only from localhost or over https. Download it instead.");
    return;
  }
  // Safari allows writing only in the click itself, so it gets the promise.
  await navigator.clipboard.write([new ClipboardItem({ "image/png": output(photo, name) })]);
  say(`The ${name} is copied.`);
}

/** The PNG, at the photo's own size, that downloading and copying give. */
async function output(photo, view) {
  const chosen = withPossibleBackdrop({ ...wanted, view }, photo);
  const { threshold, backdrop } = chosen;
  if (view === "mask" && threshold === 0) return photo.result.blob;
  if (photo.result.width * photo.result.height > SLOW_PIXELS) {
    say("The picture is being made at its full size.");
  }
  try {
    const original = view === "mask" ? null : await originalOf(photo);
    return await fullSizePng(original, photo.result.blob, chosen);
  } catch (error) {
    const isTooLarge = error instanceof RangeError || error instanceof DOMException;
    if (!isTooLarge || (view === "cutout" && backdrop !== "none")) throw error;
    const query = { output: view, ...(threshold > 0 && { threshold }) };
    return (await requestMask(photo.file, { key: getKey(), query })).blob;
  }
}

/** Run what a button starts; the button is out of use meanwhile, and a failure is said. */
async function withBusy(button, action) {
  if (button.hasAttribute("aria-busy")) return;
  button.setAttribute("aria-busy", "true");
  const photo = current; // another may be chosen before it is done
  try {
    await action(photo);
  } catch (error) {
    say(whyNot(error, photo));
  } finally {
    button.removeAttribute("aria-busy");
  }
}

function whyNot(error, { file }) {
  if (error instanceof Refusal) return `${inPlainWords(error, file).title}.`;
  if (error.name === "NotAllowedError") return "The browser did not allow copying.";
  return "That did not work: the picture may be too large for this browser.";
}

function askForKey({ refusal, file }) {
  const form = find("#key-form");
  if (refusal.code === "key_unknown") forgetKey();
  form.querySelector("label").textContent = `${inPlainWords(refusal, file).title}.`;
  if (form.hidden) {
    form.hidden = false;
    find("#key").focus();
  }
  say(form.querySelector("label").textContent);
}

function listenToKeys() {
  find("#key-form").addEventListener("submit", (event) => {
    event.preventDefault();
    keepKey(find("#key").value.trim());
    find("#key").value = "";
    find("#key-form").hidden = true;
    strip.focus(current);
    queue.useKey();
  });
}

/** Say something to screen readers, and show it for a while. */
function say(text) {
  const status = find("#status");
  status.textContent = text;
  status.dataset.shown = "";
  clearTimeout(fading);
  fading = setTimeout(() => delete status.dataset.shown, STATUS_MS);
}
