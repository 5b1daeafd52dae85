// node cutout.mjs PHOTO OUT.png [URL]: the object of a photo on transparent ground.

import { readFile, writeFile } from "node:fs/promises";
import { findObject } from "./purnet.mjs";

const [photo, out, url = "http://127.0.0.1:8000"] = process.argv.slice(2);
const { picture, box, model } = await findObject(url, new Blob([await readFile(photo)]), {
  output: "cutout",
  apiKey: process.env.PURNET_API_KEY,
});
await writeFile(out, Buffer.from(await picture.arrayBuffer()));
console.log(`${out}: object at ${box}, by ${model}`);
