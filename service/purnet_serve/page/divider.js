/** A divider between two pictures: dragged anywhere on them, or moved by keys as a slider. */

/** `frame` holds the pictures, `slider` is its range input of 0 to 100; `move(percent)` is called. */
export function listenToDivider(frame, slider, move) {
  const announce = () => slider.setAttribute("aria-valuetext", `${slider.value} % original`);
  const follow = (event) => {
    const { left, width } = frame.getBoundingClientRect();
    const percent = Math.min(100, Math.max(0, (100 * (event.clientX - left)) / width));
    slider.value = percent; // in whole steps; the picture follows the pointer exactly
    announce();
    move(percent);
  };
  slider.addEventListener("input", () => {
    announce();
    move(Number(slider.value));
  });
  frame.addEventListener("pointerdown", (event) => {
    if (event.button !== 0 || slider.offsetParent === null) return; // not shown now
    event.preventDefault();
    slider.focus({ preventScroll: true, focusVisible: false });
    frame.setPointerCapture(event.pointerId);
    follow(event);
  });
  frame.addEventListener("pointermove", (event) => {
    if (frame.hasPointerCapture(event.pointerId)) follow(event);
  });
  announce();
}
