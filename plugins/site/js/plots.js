"use strict";
// Charts, drawn by Chart.js on a canvas. Each has a table or list beside it that says the same.

const charts = new Set();

function dropCharts() {
  for (const chart of charts) chart.drawn?.destroy();
  charts.clear();
}

function redrawCharts() {
  for (const chart of charts) chart.draw();
}

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
const SERIES = 8;
const seriesColour = (place) => colour(`series-${(place % SERIES) + 1}`);
const POINTS = ["circle", "rect", "triangle", "rectRot", "star", "crossRot"];

// Intervals as thin bars through each point that has `low`/`high` (vertical) or `left`/`right` (horizontal).
const intervals = {
  id: "intervals",
  beforeDatasetsDraw(chart) {
    const { ctx, chartArea: area, scales } = chart;
    ctx.save();
    ctx.beginPath();
    ctx.rect(area.left, area.top, area.width, area.height);
    ctx.clip();
    chart.data.datasets.forEach((dataset, place) => {
      if (!chart.isDatasetVisible(place)) return;
      ctx.strokeStyle = dataset.intervalColor ?? dataset.borderColor;
      ctx.globalAlpha = 0.55;
      for (const point of dataset.data) {
        const [x, y] = [scales.x.getPixelForValue(point.x), scales.y.getPixelForValue(point.y)];
        if (!isMissing(point.low)) stroke(ctx, x, scales.y.getPixelForValue(point.low), x, scales.y.getPixelForValue(point.high));
        if (!isMissing(point.left)) stroke(ctx, scales.x.getPixelForValue(point.left), y, scales.x.getPixelForValue(point.right), y);
      }
    });
    ctx.restore();
  },
};

function stroke(ctx, ...[x1, y1, x2, y2]) {
  ctx.beginPath();
  ctx.moveTo(x1, y1);
  ctx.lineTo(x2, y2);
  ctx.stroke();
}

// Names beside points, as many as fit without covering each other; points with `first` have the first choice.
const names = {
  id: "names",
  afterDatasetsDraw(chart) {
    const { ctx, chartArea: area } = chart;
    ctx.save();
    ctx.font = `12px ${Chart.defaults.font.family}`;
    ctx.fillStyle = colour("text");
    ctx.textBaseline = "middle";
    const taken = [];
    const points = chart.data.datasets.flatMap((dataset, d) => dataset.data.map((point, i) => ({ point, mark: chart.getDatasetMeta(d).data[i] })));
    for (const { mark } of points) if (mark) taken.push([mark.x - 5, mark.y - 5, mark.x + 5, mark.y + 5]);
    for (const { point, mark } of points.filter((p) => p.point.name).sort((a, b) => (b.point.first || 0) - (a.point.first || 0))) {
      const text = point.name.length > 28 ? `${point.name.slice(0, 27)}…` : point.name;
      const width = ctx.measureText(text).width;
      for (const [dx, dy] of [[9, 0], [-9 - width, 0], [-width / 2, -13], [-width / 2, 13]]) {
        const box = [mark.x + dx, mark.y + dy - 7, mark.x + dx + width, mark.y + dy + 7];
        const inside = box[0] > area.left && box[2] < area.right && box[1] > area.top && box[3] < area.bottom;
        if (!inside || taken.some((t) => box[0] < t[2] && t[0] < box[2] && box[1] < t[3] && t[1] < box[3])) continue;
        ctx.fillText(text, box[0], mark.y + dy);
        taken.push(box);
        break;
      }
    }
    ctx.restore();
  },
};

// A canvas that the keyboard walks through: arrows from point to point, Enter opens the row of one.
function chartBox(label, describedBy, configure, choose) {
  const canvas = el("canvas", { tabindex: "0", role: "application", "aria-roledescription": "plot", "aria-label": `${label}. Arrow keys go from point to point, Enter opens its row.`, "aria-describedby": describedBy });
  const box = el("div", { class: "chart" }, canvas);
  let place = -1;
  const entry = {
    draw() {
      entry.drawn?.destroy();
      place = -1;
      Object.assign(Chart.defaults, { color: colour("muted"), borderColor: colour("line"), animation: false });
      Chart.defaults.font = { family: getComputedStyle(document.body).fontFamily, size: 12 };
      const config = configure();
      entry.drawn = new Chart(canvas, {
        ...config,
        options: { maintainAspectRatio: false, ...config.options, onClick: (_, [hit]) => hit && choose?.(config.data.datasets[hit.datasetIndex].data[hit.index]) },
      });
    },
  };
  const points = () => entry.drawn.data.datasets.flatMap((d, datasetIndex) => (d.walk === false || d.hidden ? [] : d.data.map((point, index) => ({ point, datasetIndex, index }))))
    .sort((a, b) => a.point.x - b.point.x);
  canvas.addEventListener("keydown", (event) => {
    const all = points();
    if (event.key === "Enter" && all[place]) return choose?.(all[place].point);
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (!step || !all.length) return;
    event.preventDefault();
    place = (place + step + all.length) % all.length;
    const mark = entry.drawn.getDatasetMeta(all[place].datasetIndex).data[all[place].index];
    entry.drawn.setActiveElements([all[place]]);
    entry.drawn.tooltip.setActiveElements([all[place]], { x: mark.x, y: mark.y });
    entry.drawn.update("none");
    announce(all[place].point.said);
  });
  charts.add(entry);
  // Drawn once it is on the page: a canvas without a size cannot be.
  requestAnimationFrame(() => charts.has(entry) && entry.draw());
  return { box, entry };
}

const axisForms = (form) => (value) => (isMissing(value) ? "" : form === "score" ? digits(value) : FORMS[form](value));

function axis(title, form, logarithmic, range) {
  const [low, high] = range;
  const pad = logarithmic ? Math.max(1.03, (high / low) ** 0.06) : Math.max((high - low) * 0.06, Math.abs(high) * 0.005, 1e-9);
  return {
    type: logarithmic ? "logarithmic" : "linear",
    min: logarithmic ? low / pad : low - pad,
    max: logarithmic ? high * pad : high + pad,
    title: { display: true, text: title, color: colour("text") },
    grid: { color: colour("line") },
    afterBuildTicks: logarithmic ? (scale) => (scale.ticks = logTicks(scale.min, scale.max)) : undefined,
    ticks: { callback: axisForms(form), maxRotation: 0, autoSkipPadding: 12, ...(logarithmic ? {} : { maxTicksLimit: 8 }) },
  };
}

// Round values, about equally far apart on a log scale. The library's own are too few over a narrow range and too many over a wide one.
function logTicks(min, max) {
  const decades = Math.log10(max / min);
  if (decades > 1.2) {
    const steps = decades > 4 ? [1] : decades > 2 ? [1, 3] : [1, 2, 5];
    const found = [];
    for (let power = Math.floor(Math.log10(min)); power <= Math.log10(max); power++) for (const s of steps) found.push(s * 10 ** power);
    return found.filter((v) => v >= min && v <= max).map((value) => ({ value }));
  }
  const rough = (max - min) / 6;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((s) => s * power).find((s) => s >= rough);
  const found = [];
  for (let k = Math.ceil(min / step); k * step <= max; k++) found.push({ value: Number((k * step).toPrecision(12)) });
  return found;
}

function rangeOf(values) {
  const found = values.filter((v) => Number.isFinite(v));
  return found.length ? [Math.min(...found), Math.max(...found)] : [1, 1];
}
