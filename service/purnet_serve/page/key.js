/** The API key, where the server asks for one: kept until the tab is closed, at most. */

const NAME = "purnet-api-key";
let inMemory = ""; // where a browser allows a page no storage

/** The key a person entered in this tab, or "". */
export function getKey() {
  try {
    return sessionStorage.getItem(NAME) ?? inMemory;
  } catch {
    return inMemory;
  }
}

export function keepKey(key) {
  inMemory = key;
  try {
    sessionStorage.setItem(NAME, key);
  } catch {
    // It stays in memory, until the page is closed.
  }
}

export function forgetKey() {
  inMemory = "";
  try {
    sessionStorage.removeItem(NAME);
  } catch {
    // There was no storage.
  }
}
