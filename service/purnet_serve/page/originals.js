/**
 * What stands for the original of a photo: its file, or where the browser cannot display its format,
 * the server's cutout by the lowest threshold, which holds every pixel that any mask can show.
 */

import { requestMask } from "./api.js";
import { getKey } from "./key.js";
import { RecentPromises } from "./recent.js";

const cutouts = new RecentPromises(3); // each is as large as its photo, and hundreds may be queued

/** A picture that the browser can display. Rejects with the `Refusal` of a cutout. */
export async function originalOf(photo) {
  return photo.displayable ? photo.file : cutouts.get(photo, requestCutout);
}

async function requestCutout({ file, cancel }) {
  const query = { output: "cutout", threshold: 1 };
  return (await requestMask(file, { key: getKey(), query, signal: cancel.signal })).blob;
}

/** `wanted`, with nothing behind the cutout in place of a blurred photo whose whole is not known. */
export function withPossibleBackdrop(wanted, photo) {
  const isUnknown = wanted.backdrop === "blur" && !photo.displayable;
  return isUnknown ? { ...wanted, backdrop: "none" } : wanted;
}
