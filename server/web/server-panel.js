// How busy the server is, read from the numbers it keeps for Prometheus, while the panel is open and the page is seen.

import { Problem, address, send } from "./api.js";
import { el, svg } from "./dom.js";
import { language, t } from "./i18n.js";

const EVERY_MS = 2000;
const WINDOWS_S = [60, 300]; // the shorter one until there is more to show
const WIDTH = 300;
const HEIGHT = 96;
const NAMES = {
  running: "vllm:num_requests_running",
  waiting: "vllm:num_requests_waiting",
  cache: "vllm:kv_cache_usage_perc",
  tokens: "vllm:generation_tokens_total",
};

/** Returns the sum of each metric we show over its labels. */
export function readMetrics(text) {
  const sums = {};
  for (const line of text.split("\n")) {
    const end = line.search(/[{ ]/);
    if (end > 0 && line[0] !== "#") sums[line.slice(0, end)] = (sums[line.slice(0, end)] ?? 0) + Number(line.slice(line.lastIndexOf(" ")));
  }
  return Object.fromEntries(Object.entries(NAMES).map(([key, name]) => [key, sums[name]]));
}

export class ServerPanel {
  constructor() {
    this.points = [];
    this.last = null;
    this.timer = 0;
    document.addEventListener("visibilitychange", () => this.tick());
  }

  hide() {
    clearTimeout(this.timer);
    this.body = null;
  }

  show(body) {
    this.body = body;
    this.values = Object.fromEntries(["running", "waiting", "cache", "speed"].map((name) => [name, el("dd", { text: "–" })]));
    this.note = el("p", { class: "hint", role: "status" });
    this.line = svg("path", { class: "line" });
    this.area = svg("path", { class: "area" });
    this.peak = el("span", { text: "" });
    this.begin = el("span", { text: "" });
    this.chart = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img", class: "chart" }, this.area, this.line);
    body.append(
      el("dl", { class: "numbers" }, ...Object.entries(this.values).map(([name, value]) => el("div", {}, el("dt", { text: t(`live_${name}`) }), value))),
      el("figure", {}, el("div", { class: "chart-head" }, el("span", { text: t("tokensPerSecond") }), this.peak), this.chart,
        el("figcaption", {}, this.begin, el("span", { text: t("now") }))),
      this.note,
      el("p", { class: "links" }, ...[["docs", "docs"], ["metrics", "metrics"], ["version", "version"]].map(([path, key]) =>
        el("a", { href: address(path), target: "_blank", rel: "noopener", text: t(`link_${key}`) }))));
    this.draw();
    this.tick();
  }

  async tick() {
    clearTimeout(this.timer);
    const { body } = this;
    if (!body || document.hidden) return;
    try {
      const numbers = readMetrics(await (await send("metrics", { quiet: true })).text());
      if (this.body === body) this.take(numbers);
    } catch (error) {
      if (this.body === body) this.note.textContent = error instanceof Problem ? error.message : String(error);
    }
    if (this.body === body) {
      clearTimeout(this.timer);
      this.timer = setTimeout(() => this.tick(), EVERY_MS);
    }
  }

  take({ running, waiting, cache, tokens }) {
    const at = performance.now() / 1000;
    // Behind a gap, as when the page was not seen, the mean of the gap would be drawn as if it were the speed now.
    if (this.last && at - this.last.at < (EVERY_MS / 1000) * 5 && tokens >= this.last.tokens) {
      this.points.push({ at, rate: (tokens - this.last.tokens) / (at - this.last.at) });
    }
    this.last = { at, tokens };
    this.points = this.points.filter((point) => point.at > at - WINDOWS_S.at(-1));
    const show = (value, digits = 0) => (value === undefined ? "–" : value.toLocaleString(language(), { maximumFractionDigits: digits }));
    this.values.running.textContent = show(running);
    this.values.waiting.textContent = show(waiting);
    this.values.cache.textContent = cache === undefined ? "–" : `${show(cache * 100, cache < 0.01 ? 2 : 1)} %`;
    this.values.speed.textContent = show(this.points.at(-1)?.rate);
    this.note.textContent = "";
    this.draw();
  }

  draw() {
    const now = performance.now() / 1000;
    const peak = Math.max(1, ...this.points.map(({ rate }) => rate));
    const seconds = WINDOWS_S.find((window) => !this.points.length || now - this.points[0].at <= window) ?? WINDOWS_S.at(-1);
    this.begin.textContent = t(seconds === 60 ? "minuteAgo" : "minutesAgo", { count: seconds / 60 });
    const place = ({ at, rate }) => [WIDTH * (1 - (now - at) / seconds), HEIGHT - 2 - (HEIGHT - 6) * (rate / peak)].map((n) => n.toFixed(1)).join(" ");
    const line = this.points.map((point, index) => (index ? "L" : "M") + place(point)).join("");
    this.line.setAttribute("d", line);
    const [first, last] = [this.points[0], this.points.at(-1)];
    this.area.setAttribute("d", first ? `${line}L${place({ ...last, rate: 0 })}L${place({ ...first, rate: 0 })}Z` : "");
    this.peak.textContent = first ? t("peak", { rate: Math.round(peak).toLocaleString(language()) }) : "";
    this.chart.setAttribute("aria-label", t("chartLabel", { now: Math.round(last?.rate ?? 0), peak: first ? Math.round(peak) : 0 }));
  }
}
