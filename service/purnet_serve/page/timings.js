/** Where the time went: the stages of Server-Timing, and the rest between server and screen. */

import { duration } from "./format.js";

const STAGES = {
  receive: "Receiving the photo",
  decode: "Reading the photo",
  queue: "Waiting in the queue",
  infer: "Finding the object",
  encode: "Writing the mask",
};
const REST = "Network and browser";

/** `[{name, title, ms}]` of a Server-Timing header and the time that the browser measured. */
export function stages(serverTiming, totalMs) {
  const found = [...serverTiming.matchAll(/([\w-]+);dur=([\d.]+)/g)].map(([, name, ms]) => ({
    name,
    title: STAGES[name] ?? name,
    ms: Number(ms),
  }));
  const onServer = found.reduce((sum, stage) => sum + stage.ms, 0);
  return [...found, { name: "rest", title: REST, ms: Math.max(0, totalMs - onServer) }];
}

/** Fill the section of the timings with those of a result. */
export function showTimings(section, result) {
  const rows = stages(result.serverTiming, result.totalMs);
  section.querySelector(".total").textContent = duration(result.totalMs);
  section.querySelector(".chart").replaceChildren(
    ...rows.map(({ name, ms }) => {
      const bar = document.createElement("span");
      bar.dataset.stage = name;
      bar.style.flexGrow = ms;
      return bar;
    }),
  );
  section.querySelector("dl").replaceChildren(
    ...rows.map(({ name, title, ms }) => {
      const row = document.createElement("div");
      const term = document.createElement("dt");
      const value = document.createElement("dd");
      row.dataset.stage = name;
      term.textContent = title;
      value.textContent = duration(ms);
      row.append(term, value);
      return row;
    }),
  );
}
