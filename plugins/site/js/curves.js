"use strict";
// How costs grow: by sequence length, and by number of ranks. A chart with a chosen column, and the same as a table.

const COST_TITLES = {
  "train.step_s": "Training step", "infer.prefill_s": "Prefill", "infer.decode_token_s": "Generated token",
  "train.peak_memory_bytes": "Training memory", "infer.peak_memory_bytes": "Inference memory",
};

// `views`: [{key, title, form, lines: [{label, row, points: [{x, y, low, high}]}]}]; `across`: the title of the x axis.
function curves(board, link, { id, title, lead, across, views, after }) {
  const shown = views.map((view) => ({ ...view, lines: view.lines.filter((line) => line.points.length) })).filter((view) => view.lines.length);
  if (!shown.length) return null;
  const labels = [...new Set(shown.flatMap((view) => view.lines.map((line) => line.label)))];
  const hidden = new Set();
  let view = shown[0];
  const numbers = el("div");
  const { box, entry } = chartBox(`${title}, a line per stack`, `${id}-numbers`, () => lineChart(board, view, across, labels, hidden), (point) => point.row && link.go(point.row));
  const keys = labels.map((label, place) => {
    const input = el("input", { type: "checkbox", checked: true, onchange: () => {
      hidden[input.checked ? "delete" : "add"](label);
      entry.draw();
    } });
    return el("label", { class: "check" }, input, swatch(place), named(label), board.baseline === label ? " (baseline)" : null);
  });
  const swatches = () => keys.forEach((key, place) => key.querySelector("svg").replaceWith(swatch(place)));
  const change = (key) => {
    view = shown.find((v) => v.key === key);
    entry.draw();
    numbers.replaceChildren(curveTable(view, across));
  };
  const draw = entry.draw;
  entry.draw = () => {
    swatches();
    draw();
  };
  numbers.append(curveTable(view, across));
  return section(
    id, title, el("p", {}, lead),
    el("div", { class: "controls" }, select("Show", shown.map((v) => [v.key, v.title]), view.key, change, `${id}-view`)),
    box,
    el("fieldset", { class: "keys" }, el("legend", {}, "Lines"), keys),
    el("details", {}, el("summary", {}, "The same as a table"), el("div", { id: `${id}-numbers` }, numbers)),
    after,
  );
}

const DASHES = [[], [6, 3], [2, 2]];
const dashOf = (place) => DASHES[Math.floor(place / SERIES) % DASHES.length];

function swatch(place) {
  return svg("svg", { class: "swatch", viewBox: "0 0 24 10", "aria-hidden": "true" },
    svg("line", { x1: 0, x2: 24, y1: 5, y2: 5, stroke: seriesColour(place), "stroke-width": 3, "stroke-dasharray": dashOf(place).join(" ") || null }));
}

function lineChart(board, view, across, labels, hidden) {
  const datasets = view.lines.map((line) => {
    const place = labels.indexOf(line.label);
    return {
      label: line.label, borderColor: seriesColour(place), backgroundColor: seriesColour(place), borderDash: dashOf(place), borderWidth: line.row === board.baseline ? 4 : 2,
      pointStyle: POINTS[place % POINTS.length], radius: 4, pointHitRadius: 8, hidden: hidden.has(line.label),
      data: line.points.map((p) => ({ ...p, row: line.row, said: `${line.label}, ${across.toLowerCase()} ${p.x}: ${written(p.y, view.form)}` })),
    };
  });
  const points = view.lines.filter((line) => !hidden.has(line.label)).flatMap((line) => line.points);
  const lengths = [...new Set(points.map((p) => p.x))].sort((a, b) => a - b);
  // What N ranks would give if none ever waited for another.
  if (view.ideal) datasets.push({ label: "ideal", data: lengths.map((n) => ({ x: n, y: n, said: `ideal: ${n}×` })), walk: false, borderColor: colour("muted"), borderDash: [1, 4], borderWidth: 2, pointRadius: 0 });
  const x = axis(across, "count", true, rangeOf(lengths));
  x.afterBuildTicks = (scale) => (scale.ticks = lengths.map((value) => ({ value })));
  x.ticks.callback = String;
  const y = axis(view.title, view.form, true, rangeOf([...points.flatMap((p) => [p.y, p.low, p.high]), ...(view.ideal ? lengths : [])].filter((v) => v > 0)));
  return {
    type: "line",
    data: { datasets },
    plugins: [intervals],
    options: {
      parsing: false,
      scales: { x: { ...x, type: "logarithmic" }, y },
      plugins: { legend: { display: false }, tooltip: { callbacks: { title: () => "", label: (item) => item.raw.said } } },
    },
  };
}

function curveTable(view, across) {
  const xs = [...new Set(view.lines.flatMap((line) => line.points.map((p) => p.x)))].sort((a, b) => a - b);
  const cell = (line, x) => {
    const point = line.points.find((p) => p.x === x);
    return point ? [written(point.y, view.form), el("small", {}, interval(point.low, point.high, FORMS[view.form]))] : MISSING;
  };
  const titles = [across, ...xs.map(String)];
  const caption = `${view.title} by ${across.toLowerCase()}`;
  return region(caption, table(caption, titles, view.lines.map((line) => [named(line.label), ...xs.map((x) => cell(line, x))]), { class: "numbers" }));
}

// Entries of a table of columns; those of text hold words and which of them stands where.
function entries({ length, columns }) {
  const value = (column, i) => (column?.words ? column.words[at(column.at, i)] : at(column, i));
  return Array.from({ length }, (_, i) => Object.fromEntries(Object.entries(columns).map(([name, column]) => [name, value(column, i)])));
}

// Where batch sizes or dtypes differ, a label tells them apart.
function labeller(all) {
  const several = (name) => new Set(all.map((e) => e[name])).size > 1;
  const words = [["batch_size", "batch "], ["dtype", ""]].filter(([name]) => several(name));
  return (e) => [e.stack, ...words.map(([name, word]) => `${word}${e[name]}`)].join(", ");
}

const rowId = (board, stack) => board.ids[board.rows.stack.indexOf(stack)];

function byLength(board, link) {
  if (!board.by_length) return null;
  const all = entries(board.by_length);
  const label = labeller(all);
  const metrics = [...new Set(all.map((e) => e.metric))];
  const lines = (metric, make) => [...Map.groupBy(all.filter((e) => e.metric === metric), label)].map(([name, own]) => ({
    label: name, row: rowId(board, own[0].stack), points: own.map(make).filter((p) => p.y > 0),
  }));
  const views = metrics.flatMap((metric) => [
    { key: metric, title: COST_TITLES[metric] ?? metric, form: /_bytes$/.test(metric) ? "bytes" : "seconds", lines: lines(metric, (e) => ({ x: e.seq_len, y: e.value })) },
    { key: `${metric} ratio`, title: `${COST_TITLES[metric] ?? metric}, × baseline (below 1 is cheaper)`, form: "ratio", lines: lines(metric, (e) => ({ x: e.seq_len, y: e.ratio, low: e.low, high: e.high })) },
  ]);
  return curves(board, link, {
    id: "lengths", title: "How cost grows with the sequence length", across: "Sequence length (tokens)", views,
    lead: "Both axes are logarithmic: a cost that grows in proportion to the length rises by one for one, one that grows with its square twice as steeply.",
    after: growth(board, label),
  });
}

function growth(board, label) {
  const two = (x) => x.toFixed(2);
  const rows = entries(board.scaling).map((e) => [
    named(label(e)), COST_TITLES[e.metric] ?? e.metric,
    isMissing(e.exponent) ? MISSING : [two(e.exponent), " ", el("small", {}, interval(e.low, e.high, two))],
    e.classes || MISSING, e.crossover_words || MISSING,
  ]);
  const titles = ["Stack", "Cost", "Exponent", "Grows like", "As cheap as the baseline from (tokens)"];
  return [
    el("h3", {}, "Order of growth"),
    el("p", {}, "The exponent k in cost ~ length^k with its 95 % interval, and which of a + b·(constant, n, n log n, n√n, n²) the costs support; ≈: none is right within the noise, these are nearest. As cheap from: ≤ at every length measured, > at none."),
    el("details", {}, el("summary", {}, "Exponents and crossovers"), region("Order of growth", table("Order of growth", titles, rows, { class: "numbers" }))),
  ];
}

function byRanks(board, link) {
  if (!board.world_sizes) return null;
  const all = entries(board.world_sizes);
  const speeds = { train_speed: "Training", prefill_speed: "Prefill", decode_speed: "Generation" };
  const lines = (make) => [...Map.groupBy(all, (e) => e.stack)].map(([stack, own]) => ({ label: stack, row: rowId(board, stack), points: own.map(make).filter((p) => p.y > 0) }));
  const views = Object.entries(speeds).flatMap(([key, word]) => [
    { key: `${key} speedup`, title: `${word}: speedup over a single rank`, form: "ratio", ideal: true, lines: lines((e) => ({ x: e.world_size, y: e[`${key}_ratio`], low: e[`${key}_low`], high: e[`${key}_high`] })) },
    { key: `${key} efficiency`, title: `${word}: efficiency (speedup / ranks)`, form: "score", lines: lines((e) => ({ x: e.world_size, y: e[`${key}_efficiency`] })) },
    { key: `${key} per core`, title: `${word}: speedup / what the cores allow`, form: "score", lines: lines((e) => ({ x: e.world_size, y: e[`${key}_per_core`] })) },
  ]);
  views.push(
    { key: "train_memory", title: "Training memory of the rank that needs most", form: "bytes", lines: lines((e) => ({ x: e.world_size, y: e.train_memory })) },
    { key: "infer_memory", title: "Inference memory of the rank that needs most", form: "bytes", lines: lines((e) => ({ x: e.world_size, y: e.infer_memory })) },
    { key: "communicated", title: "Communicated in a step, by all ranks", form: "bytes", lines: lines((e) => ({ x: e.world_size, y: e["train.communication_bytes"] })) },
  );
  return curves(board, link, {
    id: "ranks", title: "Across numbers of ranks", across: "Ranks", views,
    lead: "A rank is a process with a share of the work: a GPU of its own, or a part of the CPU's cores. Nothing is ranked across them, for N ranks cost N devices. Speedup is over the same stack without its parallel techniques on a single rank; dotted: as many times as fast as there are ranks.",
  });
}
