/* Search without a server: where a page comes from a file, browsers start no workers. This one runs a worker's script in a
   hidden frame instead, with the two messages that Material's search needs. Elsewhere nothing is changed. */
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super()
      const frame = document.createElement("iframe")
      frame.hidden = true
      document.body.append(frame)
      const inside = frame.contentWindow
      const run = source =>
        new Promise((done, failed) => {
          const script = inside.document.createElement("script")
          script.src = source
          script.onload = done
          script.onerror = () => failed(new Error(source))
          inside.document.head.append(script)
        })
      const base = new URL(url, document.baseURI)
      // the script loads its languages one after another
      let loaded = Promise.resolve()
      inside.importScripts = (...names) => {
        for (const name of names) loaded = loaded.then(() => run(new URL(name, base).href))
        return loaded
      }
      inside.postMessage = data => this.dispatchEvent(new MessageEvent("message", { data }))
      this.inside = inside
      this.ready = run(base.href)
      this.frame = frame
    }

    postMessage(data) {
      this.ready.then(() => this.inside.dispatchEvent(new this.inside.MessageEvent("message", { data })))
    }

    terminate() {
      this.frame.remove()
    }
  }
}
