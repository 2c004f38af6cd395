"use strict";
// What stands behind a row: its cells with every round's values, settings, machine, and where the records are.

const at = (values, place) => (Array.isArray(values) ? values[place] : values);

function facts(pairs) {
  const shown = pairs.filter(([, value]) => !isMissing(value) && value !== "");
  return el("dl", { class: "facts" }, shown.map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value))));
}

function details(site, board, index) {
  const row = board.details[index];
  const label = board.rows.stack[index];
  return el(
    "div", { class: "details" },
    el("h3", { tabindex: "-1" }, "Details of ", named(label)),
    row.leaks ? el("p", { class: "notice" }, "Leaks the future, so its quality means nothing: ", row.leaks) : null,
    techniques(site, board.rows.techniques[index]),
    facts([
      ["Compared with", row.against && named(row.against)],
      ["Options", optionWords(row.options)],
      ["Status", board.rows.status[index]],
      ["Machine", machineWords(site.machines[board.machine], board.machine)],
    ]),
    row.cells.map((cell) => cellDetails(site, board, { ...board.common, ...cell }, row.cells.length === 1)),
  );
}

function techniques(site, names) {
  const known = names.split(" + ").filter((name) => Object.hasOwn(site.techniques, name));
  if (!known.length) return null;
  const say = (name) => [el("b", {}, name), ` (${site.techniques[name].family}): ${site.techniques[name].says}`];
  return el("ul", { class: "plain" }, known.map((name) => el("li", {}, say(name))));
}

function optionWords(options) {
  const words = Object.entries(options).map(([name, value]) => `${name} = ${typeof value === "string" ? value : JSON.stringify(value)}`);
  return words.length ? named(words.join(", ")) : null;
}

function machineWords(machine, slug) {
  if (!machine) return [named(slug), " (no machine.json beside the records)"];
  const parts = [machine.cpu, `${machine.cores} cores`, `${machine.memory_gib} GiB`, ...machine.gpus, machine.system];
  return [named(parts.join(" · ")), el("br"), el("code", {}, named(slug))];
}

function cellDetails(site, board, cell, open) {
  const shape = `${cell.seq_len} tokens, batch ${cell.batch_size}, ${cell.dtype}` + (cell.world_size > 1 ? `, ${cell.world_size} ranks` : "");
  const box = el("details", { open }, el("summary", {}, shape, " · ", el("code", {}, named(cell.id))));
  const content = () => [rounds(site, board, cell), recipe(cell), whereabouts(board, cell)];
  // A cell's tables are made when they are first looked at: a board may have hundreds.
  const once = () => box.open && box.childElementCount === 1 && box.append(...content());
  box.addEventListener("toggle", once);
  once();
  return box;
}

function rounds(site, board, cell) {
  const metrics = Object.keys(cell.values);
  const several = Array.isArray(cell.session);
  const titles = [
    "Round",
    ...metrics.map((metric) => [el("span", { class: "nowrap" }, metric), el("small", {}, site.metrics[metric]?.unit || "")]),
    "Remarks",
  ];
  const rows = cell.round.map((number, place) => [
    several ? `${number} (session ${at(cell.session, place) + 1})` : String(number),
    ...metrics.map((metric) => written(at(cell.values[metric], place), metric.startsWith("quality.") ? "score" : site.metrics[metric].form)),
    [cell.lost[place], cell.dirty[place] && `disturbed, timings left out: ${cell.dirty[place]}`].filter(Boolean).join("; ") || "ok",
  ]);
  return region(`Values by round of ${cell.id}`, table(`Values by round of ${cell.id}`, titles, rows, { class: "numbers" }));
}

function recipe(cell) {
  const options = (cell.techniques || []).map(([name, given]) => `${name}${Object.keys(given).length ? ` ${JSON.stringify(given)}` : ""}`);
  const versions = Object.entries(cell.versions || {}).map(([name, version]) => `${name} ${version}`);
  const sources = Object.entries(cell.sources || {}).map(([name, hash]) => `${name} ${hash}`);
  return facts([
    ["Settings", named(cell.settings)],
    ["Device", cell.device],
    ["Training steps", cell.steps],
    ["Learning rate", isMissing(cell.lr) ? null : String(cell.lr)],
    ["Techniques", options.length ? named(options.join(" → ")) : null],
    ["Libraries", versions.length ? named(versions.join(", ")) : null],
    ["Fingerprint", named(`methodology ${cell.methodology}, weights ${cell.weights}, data ${cell.data}`)],
    ["Hash of sources", sources.length ? named(sources.join(", ")) : null],
  ]);
}

// File names follow from cell and round; only those that do not are in the data.
function whereabouts(board, cell) {
  const folder = board.folder ? `${board.folder}/` : "";
  const line = (number, place) => {
    const sidecar = at(cell.samples, place) || `${cell.id}.r${number}.samples.zst`;
    const record = named(`${folder}${cell.files[place] ?? `${cell.id}.r${number}.json`}`);
    return el("li", {}, el("code", {}, record), sidecar === "none" ? " (no raw samples)" : [" and ", el("code", {}, named(sidecar))]);
  };
  return el("div", { class: "where" }, el("h4", {}, "Records, below the results folder, and their raw samples"), el("ul", {}, cell.round.map(line)));
}
