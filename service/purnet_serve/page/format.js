/** Numbers and names as people read them. */

const plain = new Intl.NumberFormat("en", { maximumFractionDigits: 1 });

/** A count, at most one decimal: 50.3, 16,384. */
export const count = (value) => plain.format(value);

/** A size: 812 bytes, 46 kB, 33.6 MB; a kB has 1000 bytes. */
export function bytes(size) {
  if (size < 1000) return `${size} bytes`;
  return size < 1e6 ? `${Math.round(size / 1000)} kB` : `${count(size / 1e6)} MB`;
}

/** A duration: 0.4 ms, 32 ms, 1.3 s. */
export function duration(ms) {
  if (ms >= 1000) return `${count(ms / 1000)} s`;
  return ms < 10 ? `${count(ms)} ms` : `${Math.round(ms)} ms`;
}

/** `seconds` as words: 1 second, 5 seconds. */
export const seconds = (value) => `${value} second${value === 1 ? "" : "s"}`;

/** The name of a file without what follows its last dot. */
export const stem = (name) => name.replace(/\.[^.]*$/, "") || name;
