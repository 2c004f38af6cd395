"use strict";
// Which board and row is shown hangs on the address alone, #machine/suite/board/row: links, bookmarks and the back button work.

const site = JSON.parse(document.getElementById("data").textContent);
const main = document.getElementById("main");
const shown = { board: undefined, machine: undefined, table: null };

const hashOf = (...parts) => `#${parts.map(encodeURIComponent).join("/")}`;
const hashOfBoard = (board, ...row) => hashOf(board.machine, board.suite, board.name, ...row);

function address() {
  try {
    const [machine = "", suite = "", name = "", ...row] = location.hash.slice(1).split("/").map(decodeURIComponent);
    return { machine, suite, name, row: row.join("/") };
  } catch {
    return { machine: "", suite: "", name: "", row: "" }; // not percent-encoded text: somebody's typing error
  }
}

function route() {
  const { machine, suite, name, row } = address();
  const known = !machine || site.boards.some((board) => board.machine === machine);
  if (!known && shown.board !== undefined) return; // the address of a place on this page, such as the skip link's
  const only = site.boards.length === 1 ? site.boards[0] : null;
  const here = site.boards.filter((b) => b.machine === machine && b.suite === suite);
  const board = here.find((b) => b.name === name) ?? (name ? undefined : here[0]) ?? only; // a suite's address is that of its first board
  const first = shown.board === undefined;
  const changed = first || board !== shown.board || (!board && machine !== shown.machine);
  if (changed) show(board, known ? machine : "");
  if (board) shown.table.show(row || null, Boolean(row) || !changed);
  // A screen reader goes on at the new title, but whoever walks through a picker's choices stays in it.
  if (changed && !first && !row && !document.activeElement?.closest("#pickers")) document.getElementById("title").focus();
}

function show(board, machine) {
  dropCharts();
  Object.assign(shown, { board, machine, table: null });
  pickers(board, machine);
  document.title = `${board ? `${board.title} · ` : ""}effbench leaderboard`;
  if (!board) return main.replaceChildren(...overview(site, machine, hashOfBoard));
  const link = {
    hash: (row) => hashOfBoard(board, row),
    go(row) {
      location.hash = row === null ? hashOfBoard(board) : hashOfBoard(board, row);
    },
  };
  shown.table = new BoardTable(site, board, link);
  const sections = [
    glance(board, link),
    section("board", "Leaderboard", legend(board), shown.table.element),
    pareto(board, link),
    byLength(board, link),
    byRanks(board, link),
    claims(board),
    notes(board),
    definitions(site, board),
  ].filter(Boolean);
  main.replaceChildren(heading(site, board), contents(sections), ...sections);
}

// Jumps within the page; they leave the address alone, which says what is shown.
function contents(sections) {
  const items = sections.map((part) => {
    const title = part.querySelector("h2");
    const jump = (event) => {
      event.preventDefault();
      title.focus({ preventScroll: true });
      part.scrollIntoView();
    };
    return el("li", {}, el("a", { href: `#${part.id}`, onclick: jump }, title.textContent));
  });
  return el("nav", { class: "contents", "aria-label": "On this page" }, el("ul", {}, items));
}

function pickers(board, machine) {
  const unique = (values) => [...new Set(values)];
  const machines = unique(site.boards.map((b) => b.machine));
  const of = (chosen) => site.boards.filter((b) => !chosen || b.machine === chosen);
  const here = board ? board.machine : machine;
  const suites = unique(of(here).map((b) => b.suite));
  const siblings = board ? of(here).filter((b) => b.suite === board.suite) : [];
  const go = (target) => (location.hash = target ? hashOfBoard(target) : "#");
  const toMachine = (value) => (board && value ? go(of(value).find((b) => b.suite === board.suite) ?? of(value)[0]) : (location.hash = value ? hashOf(value) : "#"));
  const toSuite = (value) => (value ? go(of(here).find((b) => b.suite === value)) : (location.hash = here && machines.length > 1 ? hashOf(here) : "#"));
  const parts = [
    select("Machine", [...(board ? [] : [["", "all machines"]]), ...machines.map((m) => [m, m])], here, toMachine, "pick-machine"),
    select("Suite", [...(site.boards.length > 1 || !board ? [["", "all suites (overview)"]] : []), ...suites.map((s) => [s, s])], board?.suite ?? "", toSuite, "pick-suite"),
    board ? select("Model and workload", siblings.map((b) => [b.name, b.title.replace(`${b.suite}: `, "")]), board.name, (name) => go(siblings.find((b) => b.name === name)), "pick-board") : null,
  ];
  const focused = document.activeElement?.id;
  document.getElementById("pickers").replaceChildren(...parts.filter(Boolean));
  if (focused?.startsWith("pick-")) document.getElementById(focused)?.focus();
}

function themeButton() {
  const button = document.getElementById("theme");
  const label = () => (button.textContent = isDark() ? "Light theme" : "Dark theme");
  button.addEventListener("click", () => {
    chooseTheme(isDark() ? "light" : "dark");
    label();
    redrawCharts();
  });
  systemDark.addEventListener("change", () => {
    label();
    redrawCharts();
  });
  label();
}

themeButton();
addEventListener("hashchange", route);
route();
