// The WebSocket: opened again when it breaks, and never filled with what the network has not taken yet.

// The key of this run comes in the URL and is then taken out of sight; from then on a cookie carries it.
const key = new URLSearchParams(location.search).get("token") ?? "";
if (key) history.replaceState(null, "", location.pathname);
// of every request, for a browser that keeps no cookies
export const KEY = key ? { "x-ulna-token": key } : {};

const RETRY_MS = [300, 600, 1200, 2500];
const BACKLOG = 1500; // bytes; newer words are worth more than queued ones

export class Link {
  // told(message): what the robot says; changed(): open or not
  constructor(told, changed) {
    this.told = told;
    this.changed = changed;
    this.tries = 0;
    this.latencyMs = null;
    this.refused = "";
    this.connect();
    setInterval(() => this.send({ kind: "ping" }), 1000);
  }

  get open() {
    return this.socket.readyState === WebSocket.OPEN;
  }

  connect() {
    const scheme = location.protocol === "https:" ? "wss" : "ws";
    // a browser that keeps no cookies is let in by the key
    const query = key && this.tries % 2 ? `?token=${encodeURIComponent(key)}` : "";
    this.socket = new WebSocket(`${scheme}://${location.host}/socket${query}`);
    this.socket.onopen = () => {
      this.tries = 0;
      this.send({ kind: "ping" });
      this.changed();
    };
    this.socket.onmessage = (event) => {
      const message = JSON.parse(event.data);
      if (typeof message.t === "number") this.latencyMs = performance.now() - message.t;
      this.told(message);
    };
    this.socket.onclose = (event) => {
      this.latencyMs = null;
      this.refused = event.code === 1013 || event.code === 1008 ? event.reason : "";
      this.changed();
      const wait = RETRY_MS[Math.min(this.tries++, RETRY_MS.length - 1)];
      setTimeout(() => this.connect(), wait);
    };
  }

  // whether it went out
  send(message) {
    if (!this.open || this.socket.bufferedAmount > BACKLOG) return false;
    this.socket.send(JSON.stringify({ ...message, t: performance.now() }));
    return true;
  }
}
