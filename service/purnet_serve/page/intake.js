/** Ways in for photos: pick, camera, drop, paste, and the sample. */

const FOLDER = "A folder was dropped. Drop the photos in it instead.";
const NO_FILE = "That was no file. Save the picture first, then drop or paste it.";

/** `take(files)` gets what came in, `say(text)` what a person should know when nothing did. */
export function listenForPhotos({ take, say }) {
  listenToPickers(take);
  listenToDrops(take, say);
  document.addEventListener("paste", (event) => {
    if (event.target instanceof HTMLInputElement && event.target.type !== "range") return; // text
    const files = [...(event.clipboardData?.files ?? [])];
    if (files.length > 0) take(files);
    else say(NO_FILE);
  });
  for (const button of document.querySelectorAll("[data-sample]")) {
    button.addEventListener("click", async () => {
      const photo = await loadSample(button.querySelector("img").src).catch(() => null);
      if (photo) take([photo]);
      else say("The sample photo cannot be loaded. Choose a photo of your own.");
    });
  }
}

async function loadSample(url) {
  const answer = await fetch(url);
  if (!answer.ok) throw new Error(`status ${answer.status}`);
  return new File([await answer.blob()], "coffee.jpg", { type: "image/jpeg" });
}

function listenToPickers(take) {
  for (const button of document.querySelectorAll("[data-pick]")) {
    button.addEventListener("click", () => document.getElementById(button.dataset.pick).click());
  }
  for (const input of document.querySelectorAll("input[type=file]")) {
    input.addEventListener("change", () => {
      const files = [...input.files];
      input.value = ""; // so that the same file can be chosen again
      if (files.length > 0) take(files);
    });
  }
}

function listenToDrops(take, say) {
  const { classList } = document.body;
  let depth = 0; // `dragleave` comes for each element that is left, also for inner ones
  const stop = () => {
    depth = 0;
    classList.remove("dropping");
  };
  addEventListener("dragenter", (event) => {
    event.preventDefault();
    depth += 1;
    classList.add("dropping");
  });
  addEventListener("dragleave", () => {
    depth -= 1;
    if (depth <= 0) stop();
  });
  addEventListener("dragover", (event) => event.preventDefault());
  addEventListener("drop", (event) => {
    event.preventDefault();
    stop();
    const items = [...event.dataTransfer.items].filter((item) => item.kind === "file");
    const folders = items.filter((item) => item.webkitGetAsEntry?.()?.isDirectory);
    const files = items.filter((item) => !folders.includes(item)).map((item) => item.getAsFile());
    if (folders.length > 0) say(FOLDER);
    else if (files.length === 0) say(NO_FILE);
    if (files.length > 0) take(files);
  });
}
