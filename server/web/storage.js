// What the browser keeps. Every access may fail (private windows, full disks, policies): reading then finds nothing, and
// writing says so by its result.

const PREFIX = "qwen-server:";

/** Returns what was stored under a name, or null. */
export function read(name, storage = "localStorage") {
  try {
    return window[storage].getItem(PREFIX + name);
  } catch {
    return null;
  }
}

/** Stores a text, or with null forgets it; returns whether that worked. */
export function write(name, text, storage = "localStorage") {
  try {
    if (text === null) window[storage].removeItem(PREFIX + name);
    else window[storage].setItem(PREFIX + name, text);
    return true;
  } catch {
    return false;
  }
}

/** Returns the names that begin with `start`. */
export function names(start) {
  try {
    return Object.keys(localStorage)
      .filter((key) => key.startsWith(PREFIX + start))
      .map((key) => key.slice(PREFIX.length));
  } catch {
    return [];
  }
}

/** Calls back with the name of what another tab stored or removed. */
export function onForeignChange(listener) {
  addEventListener("storage", (event) => {
    if (event.key?.startsWith(PREFIX)) listener(event.key.slice(PREFIX.length));
  });
}
