"use strict";
// What else a reader must know: how to read the table, claims, what was left out, what each column means.

function legend(board) {
  const percent = `${digits(100 * board.delta)} %`;
  const items = [
    [[chip("FASTER"), " ", chip("SMALLER"), " ", chip("BETTER")], `clearly better than the baseline, by more than ${percent}`],
    [[chip("SLOWER"), " ", chip("LARGER"), " ", chip("WORSE")], `clearly worse, by more than ${percent}`],
    [[chip("SAME")], `within ${percent} of the baseline, and the data is sure of that`],
    [[chip("UNCLEAR")], "the data cannot tell; more rounds may"],
    [[chip("HIGHER"), " ", chip("LOWER")], "clearly different, in a column where neither end is good by itself"],
  ];
  return el(
    "details", { class: "legend", id: "legend" },
    el("summary", {}, "How to read this table"),
    el("dl", { class: "words" }, items.map(([signs, words]) => el("div", {}, el("dt", {}, signs), el("dd", {}, words)))),
    el("p", {}, "Numbers are ratios to the baseline: 2.00× the speed is twice as fast, 0.50× the memory is half of it. In brackets stands the 95 % interval over rounds. ",
      "The small bar shows the same on a log scale whose middle is 1×; the shaded band is what counts as the same. ",
      "Verdicts are stricter than that interval: they are adjusted for comparing many stacks, and for looking again after more rounds."),
    el("p", {}, "A rank is a range where the data cannot order rows: it goes from 1 + the rows that are clearly better to the last place that no clearly worse row takes. ",
      "Rows without a rank are shown, and why stands in their last column. Prefill is reading the prompt; decode is generating tokens one by one. ", `${MISSING}: not measured.`),
  );
}

const CLAIM_SIGNS = { SUPPORTED: ["good", "✓"], REFUTED: ["bad", "✗"], UNCLEAR: ["unclear", "?"], "NOT-APPLICABLE": ["same", "•"] };

function claims(board) {
  if (!board.claims.length) return null;
  const holder = el("div");
  const verdicts = [...new Set(board.claims.map((claim) => claim.verdict))].sort();
  const draw = (wanted) => {
    const rows = board.claims.filter((claim) => (wanted === "here" ? claim.verdict !== "NOT-APPLICABLE" : !wanted || claim.verdict === wanted)).map((claim) => {
      const [kind, sign] = CLAIM_SIGNS[claim.verdict] ?? ["same", "•"];
      return [
        [named(claim.says), el("small", {}, named(claim.source))],
        el("span", { class: `chip ${kind}` }, el("span", { "aria-hidden": "true" }, sign), claim.verdict.toLowerCase().replace("-", " ")),
        named(claim.evidence),
        [named(claim.stack), el("small", {}, named([claim.metric, claim.relation, claim.value ?? "", claim.where && `where ${claim.where}`].filter((part) => part !== "").join(" ")))],
      ];
    });
    holder.replaceChildren(region("Claims", table("Published claims checked here", ["Claim and source", "Here", "Evidence", "Tested as"], rows, { class: "claims" })));
  };
  const apply = verdicts.some((verdict) => verdict !== "NOT-APPLICABLE") ? "here" : "";
  draw(apply);
  return section(
    "claims", "Published claims, checked here",
    el("p", {}, "What papers and documentation say of these techniques, against what this machine measured. A claim that is refuted here may hold on other hardware or at other sizes."),
    el("div", { class: "controls" }, select("Verdict", [["here", "all that apply here"], ["", "all"], ...verdicts.map((v) => [v, v.toLowerCase().replace("-", " ")])], apply, draw, "claim-verdict")),
    holder,
  );
}

function notes(board) {
  const lost = board.rows.stack.map((_, i) => i).filter((i) => isMissing(board.rows.rank[i]) && board.rows.status[i] !== "ok");
  const list = (items) => el("ul", {}, items.map((item) => el("li", {}, item)));
  return section(
    "notes", "What was left out, and what else to know",
    board.floor ? el("p", {}, `A row is ranked if its quality is within ${digits(100 * (board.floor - 1))} % of the baseline's.`) : null,
    el("h3", {}, "Not ranked"),
    lost.length ? list(lost.map((i) => [named(board.rows.stack[i]), ": ", board.rows.status[i]])) : el("p", {}, "Every row that could be is ranked."),
    el("h3", {}, "Notes"),
    board.notes.length ? list(board.notes.map(prose)) : el("p", {}, "None: nothing failed, was skipped or disturbed."),
  );
}

function definitions(site, board) {
  const rows = board.metrics
    .filter((name) => board.details.some((row) => row.cells.some((cell) => Object.hasOwn(cell.values, name))))
    .map((name) => {
      const metric = site.metrics[name];
      const better = name === `quality.${board.quality_metric}` ? board.quality_better : metric.direction;
      return [el("code", {}, named(name)), board.measures.find((m) => m.metric === name)?.title ?? (name === `quality.${board.quality_metric}` ? "Quality" : MISSING), metric.unit || MISSING, better ?? MISSING, metric.definition];
    });
  return section("metrics", "How each number is defined", region("Definitions", table("Metrics of this board", ["Metric", "Column", "Unit", "Better", "What it is"], rows, { class: "words" })));
}
