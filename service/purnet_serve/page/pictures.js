/**
 * Pixels in the browser: a picture is decoded as displayed, shrunk for the screen, and joined with
 * its mask in bands of rows, so that a photo of 50 megapixels takes one canvas of its size beside the
 * decoded photo and mask, and no more.
 */

import { RecentPromises } from "./recent.js";

const SCREEN_SIDE = 1600; // longest side, in pixels, of what is drawn on the screen
const BAND_ROWS = 512; // of the band that is joined at one time
const BLUR_SIDE = 40; // a photo of this side has no more detail than a blurred background
const BLUR_TARGET_SIDE = 640; // from here on, enlarging adds nothing to see

/** Decode a file as the browser displays it, EXIF orientation applied. Rejects if it cannot. */
async function decode(blob) {
  const image = new Image();
  const url = URL.createObjectURL(blob);
  try {
    image.src = url;
    await image.decode();
    return await createImageBitmap(image);
  } finally {
    URL.revokeObjectURL(url);
  }
}

const copies = new RecentPromises(6); // three photos and their masks

/**
 * A canvas of the size of a screen with the picture in a file. Rejects if the browser cannot display
 * it. The last few are kept, as decoding a large photo takes a second.
 */
export const screenCopy = (blob) => copies.get(blob, shrunk);

async function shrunk(blob) {
  const bitmap = await decode(blob);
  const canvas = resized(bitmap, SCREEN_SIDE);
  bitmap.close();
  return canvas;
}

/** Whether this browser can display a file. */
export const isDisplayable = (blob) => screenCopy(blob).then(() => true, () => false);

/** A copy of `source` whose longer side is at most `side`. */
export function resized(source, side) {
  const scale = Math.min(1, side / Math.max(source.width, source.height));
  return drawn(source, Math.round(source.width * scale), Math.round(source.height * scale));
}

/**
 * Draw a result on `target`, a canvas of the size wanted. `photo` and `mask` are canvases or bitmaps
 * of that size, and a mask needs no photo; `wanted` is `{view, threshold, backdrop, colour}`.
 *
 * The mask keeps its levels where `threshold` is 0, else it is 255 from there up and 0 below. The
 * cutout is the photo with the lesser of mask and its own alpha. Both are what the server answers.
 */
export function draw(target, { photo, mask }, { view, threshold, backdrop, colour }) {
  const { width, height } = target;
  const paint = target.getContext("2d");
  paint.globalCompositeOperation = "source-over";
  for (let top = 0; top < height; top += BAND_ROWS) {
    const rows = Math.min(BAND_ROWS, height - top);
    const levels = pixels(mask, width, top, rows);
    if (view === "mask") {
      paint.putImageData(limited(levels, threshold), 0, top);
    } else {
      paint.putImageData(cut(pixels(photo, width, top, rows), levels, threshold), 0, top);
    }
  }
  if (view === "mask" || backdrop === "none") return;
  paint.globalCompositeOperation = "destination-over"; // behind what is there
  if (backdrop === "blur") {
    paint.imageSmoothingQuality = "high";
    paint.drawImage(blurred(photo), 0, 0, width, height);
  } else {
    paint.fillStyle = colour;
    paint.fillRect(0, 0, width, height);
  }
}

/**
 * A PNG of the photo's own size. `original` and `mask` are files. Rejects with `RangeError` or
 * `DOMException` where the browser has no bitmap or canvas as large as that.
 */
export async function fullSizePng(original, mask, wanted) {
  const sources = {};
  try {
    sources.mask = await decode(mask);
    if (wanted.view !== "mask") sources.photo = await decode(original);
    const canvas = canvasOf(sources.mask.width, sources.mask.height);
    const probe = canvas.getContext("2d");
    probe?.fillRect(0, 0, 1, 1); // a canvas that is too large draws nothing and says nothing
    if (probe?.getImageData(0, 0, 1, 1).data[3] !== 255) throw new RangeError("canvas too large");
    draw(canvas, sources, wanted);
    const png = await new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
    if (!png) throw new RangeError("canvas too large");
    return png;
  } finally {
    sources.photo?.close();
    sources.mask?.close();
  }
}

/** RGBA of `rows` rows of a picture from `top` on. */
function pixels(source, width, top, rows) {
  const band = canvasOf(width, rows);
  const paint = band.getContext("2d", { willReadFrequently: true });
  paint.drawImage(source, 0, top, width, rows, 0, 0, width, rows);
  return paint.getImageData(0, 0, width, rows);
}

/** The grey levels of a mask, or 0 and 255 by a threshold. Changes `levels`. */
function limited(levels, threshold) {
  if (threshold === 0) return levels;
  const { data } = levels;
  for (let at = 0; at < data.length; at += 4) {
    data[at] = data[at + 1] = data[at + 2] = data[at] >= threshold ? 255 : 0;
  }
  return levels;
}

/** A photo with the lesser of mask and its own alpha. Changes `photo`. */
function cut(photo, levels, threshold) {
  const { data } = photo;
  for (let at = 0; at < data.length; at += 4) {
    let level = levels.data[at];
    if (threshold > 0) level = level >= threshold ? 255 : 0;
    if (level < data[at + 3]) data[at + 3] = level;
  }
  return photo;
}

/**
 * A small blurred copy: halved until no detail is left, then doubled again, smoothed at each step.
 * Safari has no filter for canvases.
 */
function blurred(photo) {
  const sizes = [];
  let copy = resized(photo, BLUR_TARGET_SIDE);
  while (Math.max(copy.width, copy.height) > BLUR_SIDE) {
    sizes.push([copy.width, copy.height]);
    copy = drawn(copy, Math.ceil(copy.width / 2), Math.ceil(copy.height / 2));
  }
  for (const [width, height] of sizes.reverse()) copy = drawn(copy, width, height);
  return copy;
}

function drawn(source, width, height) {
  const copy = canvasOf(Math.max(1, width), Math.max(1, height));
  const paint = copy.getContext("2d");
  paint.imageSmoothingQuality = "high";
  paint.drawImage(source, 0, 0, copy.width, copy.height);
  return copy;
}

function canvasOf(width, height) {
  return Object.assign(document.createElement("canvas"), { width, height });
}
