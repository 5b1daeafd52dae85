/** The last few results of work that takes long, for what asks for them again. */

export class RecentPromises {
  #kept = new Map();
  #limit;

  constructor(limit) {
    this.#limit = limit;
  }

  /** The promise kept for `key`, else that of `make(key)`. One that rejects is made anew the next time. */
  get(key, make) {
    const promise = this.#kept.get(key) ?? this.#add(key, make(key));
    this.#kept.delete(key);
    this.#kept.set(key, promise); // the last used is the last to go
    if (this.#kept.size > this.#limit) this.#kept.delete(this.#kept.keys().next().value);
    return promise;
  }

  #add(key, promise) {
    promise.catch(() => {
      if (this.#kept.get(key) === promise) this.#kept.delete(key);
    });
    return promise;
  }
}
