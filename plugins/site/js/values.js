"use strict";
// How figures are written and drawn. Missing is a dash, never 0.

const MISSING = "–";
const GOOD = new Set(["FASTER", "SMALLER", "BETTER"]);
const BAD = new Set(["SLOWER", "LARGER", "WORSE"]);

const isMissing = (value) => value === null || value === undefined;

// Three significant digits without an exponent.
function digits(value) {
  const size = Math.abs(value);
  if (size >= 1e6 || (size > 0 && size < 1e-6)) return value.toExponential(2);
  return size >= 999.5 ? value.toFixed(0) : String(Number(value.toPrecision(3)));
}

function scaled(value, step, units) {
  let place = 0;
  for (; place < units.length - 1 && Math.abs(value) >= step * 0.9995; place++) value /= step;
  return `${digits(value)}${units[place]}`;
}

const FORMS = {
  bytes: (value) => scaled(value, 1024, [" B", " KiB", " MiB", " GiB", " TiB"]),
  count: (value) => (Math.abs(value) < 999.5 ? digits(value) : scaled(value, 1000, ["", "K", "M", "B"])),
  share: (value) => `${digits(100 * value)} %`,
  seconds: (value) => (value >= 0.9995 ? `${digits(value)} s` : value >= 0.9995e-3 ? `${digits(value * 1e3)} ms` : `${digits(value * 1e6)} µs`),
  score: (value) => value.toFixed(3),
  ratio: (value) => `${bare(value)}×`,
};

// The figure of a ratio: two decimals, or three digits where that is more.
function bare(value) {
  return value >= 0.1 ? value.toFixed(2) : String(Number(value.toPrecision(3)));
}

function written(value, form) {
  return isMissing(value) ? MISSING : FORMS[form](value);
}

function interval(low, high, write) {
  return isMissing(low) || isMissing(high) ? "" : `[${write(low)}, ${write(high)}]`;
}

const signed = (value) => `${value < 0 ? "−" : "+"}${Math.abs(value).toFixed(3)}`;

// A verdict: its word and a sign, so that nothing hangs on colour.
function chip(word) {
  if (isMissing(word)) return null;
  if (word === "baseline") return el("span", { class: "chip base" }, "baseline");
  const kind = GOOD.has(word) ? "good" : BAD.has(word) ? "bad" : word === "UNCLEAR" ? "unclear" : "same";
  const sign = { good: "▲", bad: "▼", unclear: "?", same: word === "SAME" ? "=" : "•" }[kind];
  return el("span", { class: `chip ${kind}` }, el("span", { "aria-hidden": "true" }, sign), word.toLowerCase());
}

// Half the width of a column's bars in doublings: they share one scale, on which 1× is in the middle.
function reach(column) {
  const sizes = [...column.ratio, ...column.low, ...column.high].filter((x) => x > 0).map((x) => Math.abs(Math.log2(x)));
  return Math.min(Math.max(0.3, ...sizes), 6);
}

// Where an interval lies around 1× on a log scale; the text beside it says the same.
function bar(ratio, low, high, doublings, delta, word) {
  if (isMissing(ratio) || !(ratio > 0)) return null;
  const place = (x) => 50 + 46 * Math.min(1, Math.max(-1, Math.log2(x) / doublings));
  const band = [place(1 / (1 + delta)), place(1 + delta)];
  const kind = GOOD.has(word) ? "good" : BAD.has(word) ? "bad" : "plain";
  return svg(
    "svg", { class: `bar ${kind}`, viewBox: "0 0 100 10", "aria-hidden": "true", focusable: "false", preserveAspectRatio: "none" },
    svg("rect", { class: "band", x: band[0], y: 0, width: Math.max(1, band[1] - band[0]), height: 10 }),
    svg("line", { class: "one", x1: 50, x2: 50, y1: 0, y2: 10 }),
    isMissing(low) || isMissing(high) ? null : svg("rect", { class: "span", x: place(low), y: 3.5, width: Math.max(0.8, place(high) - place(low)), height: 3 }),
    svg("rect", { class: "dot", x: place(ratio) - 1.5, y: 1, width: 3, height: 8 }),
  );
}
