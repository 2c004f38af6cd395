"use strict";
// Elements from code. Whatever comes from records becomes text nodes and attributes here; nothing is ever parsed as HTML.

const SVG = "http://www.w3.org/2000/svg";

// el("td", {class: "x", onclick: f}, "text", child, null): null and undefined attributes and children are left out.
function el(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

function svg(tag, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return element;
}

// A name from a record: <bdi> keeps right-to-left text from reordering what stands around it.
function named(text) {
  return el("bdi", {}, text);
}

// Prose in which names stand between backticks.
function prose(text) {
  return text.split("`").map((part, place) => (place % 2 ? el("code", {}, named(part)) : part));
}

// A table that is wider than the page scrolls in a region of its own, which the keyboard reaches.
function region(label, ...children) {
  return el("div", { class: "region", role: "region", "aria-label": label, tabindex: "0" }, ...children);
}

function table(caption, titles, rows, attributes = {}) {
  const head = el("tr", {}, titles.map((title) => el("th", { scope: "col" }, title)));
  const body = rows.map(([first, ...rest]) => el("tr", {}, el("th", { scope: "row" }, first), rest.map((cell) => el("td", {}, cell))));
  return el("table", attributes, el("caption", { class: "unseen" }, caption), el("thead", {}, head), el("tbody", {}, body));
}

function section(id, title, ...children) {
  return el("section", { id, "aria-labelledby": `${id}-title` }, el("h2", { id: `${id}-title`, tabindex: "-1" }, title), ...children);
}

// A labelled <select>; options are [value, text] pairs.
function select(label, options, chosen, onchange, id) {
  const control = el("select", { id, onchange: () => onchange(control.value) });
  for (const [value, text] of options) control.append(el("option", { value, selected: value === chosen }, text));
  return field(label, control);
}

function field(label, control) {
  return el("div", { class: "field" }, el("label", { for: control.id }, label), control);
}

function announce(text) {
  document.getElementById("announce").textContent = text;
}
