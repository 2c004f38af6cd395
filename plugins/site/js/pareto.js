"use strict";
// What can be had together: two columns against each other, and the rows that no other beats in both.

// Columns that can be an axis: ratios to the baseline where there are any, scores as they are.
function paretoAxes(board) {
  const axes = board.measures.map((m) => {
    const v = board.values[m.key];
    const ratios = v.ratio.some((x) => !isMissing(x));
    const value = ratios ? v.ratio : v.value;
    return { key: m.key, title: m.title + (ratios ? ", × baseline" : ""), form: ratios ? "ratio" : m.form, better: m.better, value, low: ratios ? v.low : [], high: ratios ? v.high : [], log: value.every((x) => isMissing(x) || x > 0) };
  });
  const q = board.quality;
  const shift = (end) => q.value.map((value, i) => (isMissing(value) || isMissing(end[i]) || isMissing(q.difference[i]) ? null : value - q.difference[i] + end[i]));
  axes.push({ key: "quality", title: `Quality (${board.quality_metric})`, form: "score", better: board.quality_better, value: q.value, low: shift(q.low), high: shift(q.high), log: false });
  return axes.filter((a) => new Set(a.value.filter((x) => !isMissing(x))).size > 1);
}

// Rows that no other row equals or betters in both and betters in one.
function frontOf(rows, x, y) {
  const worth = (a, i) => (a.better === "higher" ? a.value[i] : -a.value[i]);
  const beats = (i, j) => worth(x, i) >= worth(x, j) && worth(y, i) >= worth(y, j) && (worth(x, i) > worth(x, j) || worth(y, i) > worth(y, j));
  return rows.filter((j) => !rows.some((i) => beats(i, j))).sort((i, j) => x.value[i] - x.value[j]);
}

function pareto(board, link) {
  const axes = paretoAxes(board);
  if (axes.length < 2) return null;
  const speed = axes.find((a) => board.measures.some((m) => m.key === a.key && m.metric === board.ranked_by)) ?? axes[0];
  let x = speed;
  let y = axes.find((a) => a.key === "quality" && a !== x) ?? axes.find((a) => a !== x);
  const words = el("p", { id: "front-words" });
  const ranked = board.rows.rank.some((rank) => !isMissing(rank));
  const state = () => {
    const rows = board.rows.stack.map((_, i) => i).filter((i) => !isMissing(x.value[i]) && !isMissing(y.value[i]));
    const eligible = rows.filter((i) => !ranked || !isMissing(board.rows.rank[i]));
    return { rows, eligible, front: frontOf(eligible, x, y) };
  };
  let near = null; // null: as far as the points ask for it
  const configure = () => {
    const found = state();
    zoom.checked = near ?? crushed(x, y, { rows: found.rows, front: [...found.front, ...found.rows.filter((i) => isBaseline(board, i))] });
    return scatter(board, x, y, found, zoom.checked);
  };
  const zoom = el("input", { type: "checkbox", id: "pareto-zoom", onchange: () => {
    near = zoom.checked;
    entry.draw();
  } });
  const { box, entry } = chartBox("Scatter plot of two columns, a point per stack", "front-words", configure, (point) => point.row && link.go(point.row));
  const tell = () => {
    const links = state().front.flatMap((i, n) => [n ? ", " : "", el("a", { href: link.hash(board.ids[i]) }, named(board.rows.stack[i]))]);
    words.replaceChildren("On the front (no other ranked row is at least as good in both and better in one, by the estimates alone): ", ...(links.length ? links : ["none"]), ".");
  };
  const change = (set) => (key) => {
    set(axes.find((a) => a.key === key));
    near = null;
    entry.draw();
    tell();
  };
  const options = axes.map((a) => [a.key, a.title]);
  tell();
  return section(
    "tradeoffs", "What can be had together",
    el("p", {}, "Each point is a stack, thin lines are its 95 % intervals. Rows on the dashed front are the choices worth looking at; where intervals overlap, the front is not certain. Unranked rows are hollow and stand outside the comparison."),
    el("div", { class: "controls" }, select("Across", options, x.key, change((a) => (x = a)), "pareto-x"), select("Up", options, y.key, change((a) => (y = a)), "pareto-y"),
      el("label", { class: "check" }, zoom, "only the surroundings of the front and the baseline")),
    box, words, certainty(board, link),
  );
}

// How sure the front over the suite's own metrics is, from the rounds.
function certainty(board, link) {
  const front = board.front;
  if (!front?.stack.length) return null;
  const chance = (p) => (isMissing(p) ? MISSING : p < 0.01 ? "under 1 %" : `${Math.round(100 * p)} %`);
  const rows = front.stack.map((stack, i) => [
    el("a", { href: link.hash(rowId(board, stack) ?? "") }, named(stack)),
    [chance(front.probability[i]), stack === front.knee ? el("small", {}, "best balance (knee)") : null],
    front.on_front[i] ? "yes" : "no",
    front.dominated_by[i] || MISSING,
  ]);
  const over = front.metrics.join(" and ");
  return el(
    "details", {}, el("summary", {}, `How sure the front over ${over} is`),
    el("p", {}, "The probability that no other row is at least as good in all of these and better in one, given how the rounds scatter."),
    region("Probabilities of the front", table(`Front over ${over}`, ["Stack", "Probability", "On the front by estimates", "Beaten by"], rows, { class: "words" })),
  );
}

const isBaseline = (board, i) => board.quality.verdict[i] === "baseline" || board.measures.some((m) => board.values[m.key].verdict[i] === "baseline");

// Ends of an axis: of all points with their intervals, or of the surroundings of the front.
function endsOf(a, rows, front, zoomed) {
  const all = rangeOf(rows.flatMap((i) => [a.value[i], a.low[i], a.high[i]]).filter((v) => !isMissing(v) && (!a.log || v > 0)));
  if (!zoomed) return all;
  const [low, high] = rangeOf(front.map((i) => a.value[i])).map((v) => (a.log ? Math.log(v) : v));
  const margin = Math.max(0.6 * (high - low), a.log ? 0.1 : 0.02 * Math.abs(high));
  const back = a.log ? Math.exp : (v) => v;
  return [Math.max(all[0], back(low - margin)), Math.min(all[1], back(high + margin))];
}

// Whether a few rows far off leave the front too little room to be seen.
function crushed(x, y, { rows, front }) {
  const size = ([low, high], a) => (a.log ? Math.log(high / low) : high - low);
  return [x, y].some((a) => size(endsOf(a, rows, front, true), a) < 0.25 * size(endsOf(a, rows, front, false), a));
}

function scatter(board, x, y, { rows, eligible, front }, zoomed) {
  const [onFront, candidates] = [new Set(front), new Set(eligible)];
  const point = (i) => ({
    x: x.value[i], y: y.value[i], left: x.low[i], right: x.high[i], low: y.low[i], high: y.high[i],
    name: board.rows.stack[i], row: board.ids[i], first: onFront.has(i),
    said: `${board.rows.stack[i]}: ${x.title} ${written(x.value[i], x.form)}, ${y.title} ${written(y.value[i], y.form)}${onFront.has(i) ? ", on the front" : ""}`,
  });
  const base = rows.filter((i) => isBaseline(board, i));
  const kinds = [
    ["On the front", front.filter((i) => !base.includes(i)), "rectRot", colour("good"), 7],
    ["Baseline", base, "triangle", colour("text"), 7],
    ["Other ranked rows", eligible.filter((i) => !onFront.has(i) && !base.includes(i)), "circle", colour("accent"), 5],
    ["Not ranked", rows.filter((i) => !candidates.has(i) && !base.includes(i)), "circle", colour("muted"), 5],
  ];
  const datasets = kinds.filter(([, own]) => own.length).map(([label, own, pointStyle, borderColor, radius]) => ({
    label, data: own.map(point), pointStyle, borderColor, radius, hoverRadius: radius + 2, pointHitRadius: 8,
    backgroundColor: label === "Not ranked" ? "transparent" : borderColor,
  }));
  datasets.push({ label: "Front", data: front.map((i) => ({ x: x.value[i], y: y.value[i] })), walk: false, showLine: true, pointRadius: 0, pointHitRadius: 0, borderColor: colour("good"), borderDash: [5, 4], borderWidth: 1.5 });
  const ends = (a) => endsOf(a, rows, [...front, ...base], zoomed);
  const arrow = (a, less, more) => `${a.title} (better ${a.better === "higher" ? more : less})`;
  return {
    type: "scatter",
    data: { datasets },
    plugins: [intervals, names],
    options: {
      scales: { x: axis(arrow(x, "←", "→"), x.form, x.log, ends(x)), y: axis(arrow(y, "↓", "↑"), y.form, y.log, ends(y)) },
      plugins: {
        legend: { position: "bottom", labels: { usePointStyle: true, filter: (item) => item.text !== "Front" }, onClick: null },
        tooltip: { callbacks: { label: (item) => item.raw.said ?? "" } },
      },
    },
  };
}
