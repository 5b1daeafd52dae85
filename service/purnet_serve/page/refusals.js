/**
 * Every refusal of /v1/mask in plain words, by its code: the server's (docs/api.md), or one of this
 * page's own.
 */

import { bytes, count } from "./format.js";

/** The same photo may be taken if it is sent again. */
const CAN_RETRY = true;

/** Title, text and whether trying again makes sense, by code. */
const WORDS = {
  bad_request: () => ["The server did not understand this", "", CAN_RETRY],
  bad_parameter: () => ["The server did not understand this", "Reload the page: it may be older than the server.", CAN_RETRY],
  empty_body: () => ["This file is empty", "It has no bytes. Choose another copy of the photo."],
  malformed_body: () => ["The photo arrived damaged", "", CAN_RETRY],
  missing_image: () => ["No photo arrived", "", CAN_RETRY],
  key_missing: () => ["This server asks for an API key", "The photo is sent again with the key you enter.", CAN_RETRY],
  key_unknown: () => ["The server does not know this API key", "Check it for a missing character, and enter it again.", CAN_RETRY],
  not_found: () => ["This page does not fit the server", "Masks are not made at this address. Reload the page.", CAN_RETRY],
  method_not_allowed: () => ["This page does not fit the server", "Reload the page.", CAN_RETRY],
  upload_timeout: () => ["Sending took too long", "The connection is slow. Try again, or send a smaller photo.", CAN_RETRY],
  body_too_large: (refusal, file) => [
    "This file is too large",
    `It has ${bytes(file.size)}; this server takes up to ${bytes(refusal.limit)}.`,
  ],
  unsupported_media: () => ["This is not a photo the server can read", ""],
  unsupported_content_encoding: () => ["The photo arrived compressed", "Something between you and the server changes what you send.", CAN_RETRY],
  broken_image: () => ["This photo is damaged", ""],
  too_many_pixels: (refusal) => [
    "This photo has too many pixels",
    `This server takes up to ${count(refusal.limit / 1e6)} megapixels.`,
  ],
  side_too_long: (refusal) => [
    "This photo is too long",
    `No side may have more than ${count(refusal.limit)} pixels.`,
  ],
  too_many_scans: () => ["This photo is stored in an unusual way", "Save it again as an ordinary JPEG."],
  too_many_requests: () => ["The server is busy", "Many photos are being worked on.", CAN_RETRY],
  too_many_bytes: () => ["The server is busy", "Many large photos are being worked on.", CAN_RETRY],
  would_be_late: () => ["The server is busy", "It could not answer in time. Wait a moment.", CAN_RETRY],
  internal: () => ["Something went wrong on the server", "Its log has the reason.", CAN_RETRY],
  worker_failed: () => ["The server failed on this photo", "It failed twice, so it may be this photo.", CAN_RETRY],
  non_finite: () => ["The server found no answer for this photo", "The network's output was not a number.", CAN_RETRY],
  not_ready: () => ["The server is not ready", "Its model is not loaded.", CAN_RETRY],
  draining: () => ["The server is shutting down", "Another may take its place.", CAN_RETRY],
  deadline: () => ["This took too long", "The server gave up on the photo in time for others.", CAN_RETRY],
  // Of this page, not of the server:
  unreachable: () => ["The server cannot be reached", "It may have been stopped, or your network is down.", CAN_RETRY],
  timeout: () => ["The server does not answer", "Nothing was sent or received for two minutes.", CAN_RETRY],
  file_unreadable: () => ["This file can no longer be read", "It was moved, changed or deleted since you chose it. Choose it again."],
  not_displayable: () => ["The result cannot be shown", "This browser could not open the photo or its mask. It may be short of memory.", CAN_RETRY],
  page_failed: () => ["Something went wrong on this page", "The console of the browser has the reason.", CAN_RETRY],
  removed: () => ["Removed", ""],
  unknown: (refusal) => ["An answer this page does not know", `It came with status ${refusal.status}, perhaps from a proxy before the server.`, CAN_RETRY],
};

/** Refusals whose `detail` says more about the photo than we could. */
const QUOTED = new Set(["bad_request", "unsupported_media", "broken_image", "malformed_body", "missing_image"]);

/** `{title, text, canRetry}` for a `Refusal` of `file`. */
export function inPlainWords(refusal, file) {
  const inWords = Object.hasOwn(WORDS, refusal.code) ? WORDS[refusal.code] : WORDS.unknown;
  const [title, words, canRetry = false] = inWords(refusal, file);
  return { title, text: QUOTED.has(refusal.code) ? refusal.detail : words, canRetry };
}
