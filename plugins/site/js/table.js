"use strict";
// The leaderboard: a table that is sorted and filtered where it stands, one row of which may be open.

// Columns of a board: how a cell is shown, and by what it is sorted (null: missing, always last).
function columnsOf(board) {
  const number = (text) => (isMissing(text) ? null : parseFloat(text) + (parseFloat(String(text).split("–")[1] ?? text) || 0) / 1e4);
  const columns = [
    { key: "rank", title: "Rank", first: 1, sort: (i) => number(board.rows.rank[i]), show: (i) => board.rows.rank[i] ?? MISSING, plain: true },
    { key: "stack", title: "Stack", first: 1, sort: (i) => board.rows.stack[i] },
  ];
  for (const measure of board.measures) columns.push(measureColumn(board, measure));
  if (board.quality.value.some((x) => !isMissing(x))) columns.splice(2 + board.measures.filter((m) => m.speed).length, 0, qualityColumn(board));
  columns.push({
    key: "status", title: "Cells, status", first: 1, sort: (i) => board.rows.status[i],
    show: (i) => [`${board.rows.cells[i]}`, el("small", {}, board.rows.status[i])],
  });
  return columns;
}

function measureColumn(board, measure) {
  const values = board.values[measure.key];
  const compared = values.ratio.some((x) => !isMissing(x));
  const doublings = reach(values);
  return {
    key: measure.key,
    title: measure.title,
    hint: `${measure.speed ? "tokens/s; " : ""}${measure.judged ? `${measure.better} is better` : "neither end is good by itself"}`,
    first: measure.better === "higher" ? -1 : 1,
    sort: (i) => (compared ? values.ratio[i] : values.value[i]),
    show: (i) => ratioCell(values, i, measure, doublings, board.delta),
  };
}

function ratioCell(values, i, measure, doublings, delta) {
  const [value, ratio, low, high, word] = ["value", "ratio", "low", "high", "verdict"].map((part) => values[part][i]);
  if (isMissing(value) && isMissing(ratio) && isMissing(word)) return MISSING;
  const figure = written(value, measure.form);
  if (word === "baseline") return [el("div", { class: "main" }, "1× ", chip(word)), el("small", {}, figure)];
  return [
    el("div", { class: "main" }, isMissing(ratio) ? figure : el("b", {}, written(ratio, "ratio")), " ", chip(word)),
    bar(ratio, low, high, doublings, delta, word),
    el("small", {}, [interval(low, high, bare), isMissing(ratio) ? "" : figure].filter(Boolean).join(" · ")),
  ];
}

function qualityColumn(board) {
  const q = board.quality;
  return {
    key: "quality",
    title: `Quality (${board.quality_metric})`,
    hint: `${board.quality_better} is better`,
    first: board.quality_better === "higher" ? -1 : 1,
    sort: (i) => q.value[i],
    show: (i) => {
      if (isMissing(q.value[i])) return MISSING;
      const difference = isMissing(q.difference[i]) || q.verdict[i] === "baseline" ? "" : signed(q.difference[i]);
      return [
        el("div", { class: "main" }, el("b", {}, written(q.value[i], "score")), " ", chip(q.verdict[i])),
        el("small", {}, [difference, interval(q.low[i], q.high[i], signed)].filter(Boolean).join(" ")),
      ];
    },
  };
}

// What the controls above the table let through.
const FILTERS = {
  faster: ["clearly faster at something", (board, i) => board.measures.some((m) => m.speed && board.values[m.key].verdict[i] === "FASTER")],
  smaller: ["clearly smaller in something", (board, i) => board.measures.some((m) => board.values[m.key].verdict[i] === "SMALLER")],
  kept: ["quality not clearly worse", (board, i) => !isMissing(board.quality.verdict[i]) && board.quality.verdict[i] !== "WORSE"],
  ranked: ["ranked", (board, i) => !isMissing(board.rows.rank[i])],
};

class BoardTable {
  constructor(site, board, link) {
    Object.assign(this, { site, board, link, columns: columnsOf(board), sorted: { key: "rank", direction: 1 }, open: null });
    this.filter = { text: "", family: "", checks: new Set() };
    this.count = el("p", { class: "count", id: "count" });
    this.body = el("tbody");
    this.rows = board.rows.stack.map((_, i) => this.row(i));
    this.head = this.columns.map((column) => this.title(column));
    const caption = `${board.title}: stacks against the baseline`;
    const whole = el("table", { class: "board", "aria-describedby": "legend" }, el("caption", { class: "unseen" }, caption),
      el("thead", {}, el("tr", {}, this.head)), this.body);
    this.element = el("div", {}, this.controls(), this.count, region("Leaderboard", whole));
    this.update();
  }

  title(column) {
    const sort = () => {
      const again = this.sorted.key === column.key;
      this.sorted = { key: column.key, direction: again ? -this.sorted.direction : column.first };
      this.update();
      announce(`Sorted by ${column.title}, ${this.sorted.direction > 0 ? "ascending" : "descending"}`);
    };
    const button = el("button", { type: "button", class: "sort", onclick: sort }, column.title, el("span", { class: "arrow", "aria-hidden": "true" }));
    return el("th", { scope: "col", class: `c-${column.key === "stack" ? "stack" : column.key === "rank" ? "rank" : "x"}`, "data-key": column.key },
      button, column.hint ? el("small", {}, column.hint) : null);
  }

  row(i) {
    const id = this.board.ids[i];
    const toggle = () => this.link.go(this.open === i ? null : id);
    const label = this.board.rows.stack[i];
    const button = el("button", { type: "button", class: "name", "aria-expanded": "false", "data-row": i, title: label.length > 40 ? label : null, onclick: toggle }, named(label));
    const anchor = el("a", { class: "permalink", href: this.link.hash(id), "aria-label": `Link to the row ${label}` }, "#");
    const made = this.board.rows.techniques[i];
    const cells = this.columns.map((column) =>
      column.key === "stack"
        ? el("th", { scope: "row", class: "c-stack" }, el("div", { class: "main" }, button, anchor), made === label ? null : el("small", {}, named(made)))
        : el("td", { class: column.key === "rank" ? "c-rank" : null }, column.show(i)),
    );
    const unranked = isMissing(this.board.rows.rank[i]);
    return el("tr", { class: unranked ? "unranked" : null, "data-index": i }, cells);
  }

  controls() {
    const text = el("input", { type: "search", id: "filter", autocomplete: "off", placeholder: "name, technique or status", oninput: () => this.refilter({ text: text.value }) });
    const families = [...new Set(this.board.rows.techniques.flatMap((made) => this.families(made)))].sort();
    const checks = Object.entries(FILTERS).map(([key, [words]]) => {
      const box = el("input", { type: "checkbox", "data-check": key, onchange: () => this.recheck(key, box.checked) });
      return el("label", { class: "check" }, box, words);
    });
    const family = (value) => this.refilter({ family: value });
    return el(
      "form", { class: "controls", "aria-label": "Filter the leaderboard", onsubmit: (event) => event.preventDefault() },
      field("Filter rows", text),
      families.length > 1 ? select("Family of techniques", [["", "all"], ...families.map((f) => [f, f])], "", family, "family") : null,
      el("fieldset", {}, el("legend", {}, "Show only rows that are"), checks),
    );
  }

  families(made) {
    return made.split(" + ").flatMap((name) => (Object.hasOwn(this.site.techniques, name) ? [this.site.techniques[name].family] : []));
  }

  recheck(key, on) {
    this.filter.checks[on ? "add" : "delete"](key);
    this.update();
  }

  refilter(change) {
    Object.assign(this.filter, change);
    this.update();
  }

  passes(i) {
    const { text, family, checks } = this.filter;
    const rows = this.board.rows;
    const words = [rows.stack[i], rows.techniques[i], rows.status[i]].join(" ").toLowerCase();
    if (!text.toLowerCase().split(/\s+/).every((word) => words.includes(word))) return false;
    if (family && !this.families(rows.techniques[i]).includes(family)) return false;
    return [...checks].every((key) => FILTERS[key][1](this.board, i));
  }

  // Sorting is stable and by value; what is missing stands last whatever the direction.
  order() {
    const { key, direction } = this.sorted;
    const column = this.columns.find((c) => c.key === key);
    const compare = (a, b) => (typeof a === "string" ? a.localeCompare(b, "en", { numeric: true }) : a - b);
    return this.rows.map((_, i) => [i, column.sort(i)]).sort(([i, a], [j, b]) => {
      if (isMissing(a) || isMissing(b)) return isMissing(a) - isMissing(b) || i - j;
      return direction * compare(a, b) || i - j;
    });
  }

  update() {
    const shown = this.order().map(([i]) => i).filter((i) => this.passes(i));
    for (const cell of this.head) {
      const own = cell.dataset.key === this.sorted.key;
      if (own) cell.setAttribute("aria-sort", this.sorted.direction > 0 ? "ascending" : "descending");
      else cell.removeAttribute("aria-sort");
    }
    const focused = document.activeElement;
    this.body.replaceChildren(...shown.flatMap((i) => (i === this.open ? [this.rows[i], this.inside] : [this.rows[i]])));
    if (this.body.contains(focused)) focused.focus();
    const total = this.rows.length;
    this.count.textContent = shown.length === total ? `${total} rows` : `${shown.length} of ${total} rows; the others are filtered out`;
    this.count.setAttribute("role", "status");
  }

  // Opens one row, or none; a row that a filter hides is shown by clearing the filters.
  show(id, focus = true) {
    if (this.open !== null) this.rows[this.open].querySelector(".name").setAttribute("aria-expanded", "false");
    const last = this.open;
    const index = this.board.ids.indexOf(id);
    this.open = index < 0 ? null : index;
    if (this.open !== null) {
      if (!this.passes(index)) this.clear();
      this.inside = el("tr", { class: "inside" }, el("td", { colspan: this.columns.length }, details(this.site, this.board, index)));
    }
    this.update();
    const button = (row) => this.rows[row].querySelector(".name");
    if (this.open !== null) {
      button(index).setAttribute("aria-expanded", "true");
      if (focus) button(index).focus({ preventScroll: true });
      if (focus) this.rows[index].scrollIntoView({ block: "start" });
    } else if (last !== null && focus) button(last).focus();
  }

  clear() {
    this.filter = { text: "", family: "", checks: new Set() };
    for (const input of this.element.querySelectorAll("form input")) {
      input.value = input.type === "search" ? "" : input.value;
      input.checked = false;
    }
    for (const control of this.element.querySelectorAll("form select")) control.value = "";
  }
}
