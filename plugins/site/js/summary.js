"use strict";
// What a newcomer should see first: what was compared, and which stacks clearly win at what cost in quality.

function heading(site, board) {
  const [fewest, most] = board.rounds;
  const machine = site.machines[board.machine];
  const rounds = `${fewest === most ? most : `${fewest} to ${most}`} round${most === 1 ? "" : "s"}`;
  const hardware = machine ? `${machine.gpus[0] || machine.cpu}, ${machine.cores} cores, ${machine.memory_gib} GiB` : board.machine;
  return el(
    "header", { class: "board-head" },
    el("h1", { id: "title", tabindex: "-1" }, named(board.title)),
    el(
      "p", { class: "lead" },
      `${board.rows.stack.length} way${board.rows.stack.length === 1 ? "" : "s"} to run `, el("b", {}, named(board.model)), " on ", el("b", {}, named(board.workload)),
      board.baseline ? [", each against the baseline ", el("b", {}, named(board.baseline))] : null,
      `. ${rounds} on `, named(hardware), ". ",
      board.ranked_by ? ["Ranked by ", el("code", {}, named(board.ranked_by)), ". "] : null,
      `A difference counts from ${digits(100 * board.delta)} % on.`,
    ),
  );
}

// Lists of clear winners by column; each says what the same row does to quality.
function glance(board, link) {
  const wanted = [...board.measures.filter((m) => m.speed), ...board.measures.filter((m) => SAVINGS.has(m.key))];
  const won = wanted.filter((measure) => board.values[measure.key].verdict.some((word) => GOOD.has(word)));
  const none = wanted.filter((measure) => !won.includes(measure));
  const words = [...board.measures.map((m) => board.values[m.key].verdict), board.quality.verdict].flat().filter((v) => !isMissing(v) && v !== "baseline");
  const unclear = words.filter((word) => word === "UNCLEAR").length;
  return section(
    "glance", "At a glance",
    won.length ? el("div", { class: "cards" }, won.map((measure) => winners(board, measure, link))) : null,
    none.length ? el("p", {}, `No stack is clearly better than the baseline in: ${none.map((m) => m.title.toLowerCase()).join(", ").replace(/\bkv\b/, "KV")}.`) : null,
    unclear ? el("p", { class: "rest" }, `${unclear} of all ${words.length} verdicts on this board are unclear: too few rounds, or too noisy a machine, to tell.`) : null,
  );
}

const SHOWN_WINNERS = 5;

function winners(board, measure, link) {
  const values = board.values[measure.key];
  const worse = (i) => board.quality.verdict[i] === "WORSE";
  const won = board.rows.stack
    .map((_, i) => i)
    .filter((i) => GOOD.has(values.verdict[i]))
    .sort((i, j) => worse(i) - worse(j) || (measure.better === "higher" ? values.ratio[j] - values.ratio[i] : values.ratio[i] - values.ratio[j]));
  const both = won.some(worse) && !won.every(worse);
  const word = measure.speed ? "Clearly faster" : "Clearly smaller";
  const lost = values.verdict.filter((v) => BAD.has(v)).length;
  const judged = values.verdict.filter((v) => !isMissing(v) && v !== "baseline").length;
  const items = won.slice(0, SHOWN_WINNERS).map((i) =>
    el("li", {}, el("a", { href: link.hash(board.ids[i]) }, named(board.rows.stack[i])), " ", el("b", {}, written(values.ratio[i], "ratio")), " ", cost(board, i)),
  );
  const rest = won.length > SHOWN_WINNERS ? `${won.length - SHOWN_WINNERS} more; ` : "";
  return el(
    "section", { class: "card", "aria-label": measure.title },
    el("h3", {}, measure.title),
    el("p", { class: "what" }, `${word} than the baseline${both ? ", those that do not clearly lose quality first" : ""}:`),
    el("ol", {}, items),
    el("p", { class: "rest" }, `${rest}${won.length} of ${judged} better, ${lost} worse, ${judged - won.length - lost} about the same or unclear.`),
  );
}

function cost(board, i) {
  const word = board.quality.verdict[i];
  if (isMissing(word) || word === "baseline") return null;
  const words = { WORSE: "worse quality", BETTER: "better quality", SAME: "same quality", UNCLEAR: "quality unclear" };
  const kind = { WORSE: "bad", BETTER: "good", SAME: "same", UNCLEAR: "unclear" }[word];
  return el("span", { class: `cost ${kind}` }, words[word] ?? word);
}

// The page without a chosen board: all of them, with the clearest win of each.
function overview(site, machine, hash) {
  const boards = site.boards.filter((board) => !machine || board.machine === machine);
  const titles = ["Board", "Stacks", "Rounds", "Largest clear gain in speed", "Largest without clearly worse quality", "Largest clear saving of memory or disk", "Published claims"];
  const kept = (i, board) => !["WORSE", null].includes(board.quality.verdict[i]);
  const rows = boards.map((board) => [
    el("a", { href: hash(board) }, named(board.title)),
    String(board.rows.stack.length),
    String(board.rounds[1]),
    best(board, (measure) => measure.speed),
    board.quality.verdict.every(isMissing) ? el("small", {}, "quality not measured") : best(board, (measure, i) => measure.speed && kept(i, board)),
    best(board, (measure) => SAVINGS.has(measure.key)),
    claimed(board),
  ]);
  return [
    el("header", { class: "board-head" }, el("h1", { id: "title", tabindex: "-1" }, "All boards"),
      el("p", { class: "lead" }, "Each board compares stacks (techniques applied to one model) with an untouched or otherwise named baseline, on one machine. ",
        "Numbers are ratios to that baseline; only differences that the measurements can tell are called clear.")),
    boards.length ? region("All boards", table("All boards", titles, rows, { class: "overview" })) : el("p", { class: "notice" }, "There are no trial records here."),
    ...(machine ? [] : site.side_by_side.map(sideBySide)),
  ];
}

// How many claims of papers hold on this board, and how many do not.
function claimed(board) {
  const count = (verdict) => board.claims.filter((claim) => claim.verdict === verdict).length;
  const [held, refuted, unclear] = ["SUPPORTED", "REFUTED", "UNCLEAR"].map(count);
  const words = [held && `${held} supported`, refuted && `${refuted} refuted`, unclear && `${unclear} unclear`].filter(Boolean);
  return words.length ? words.join(", ") : el("small", {}, "none");
}

// One suite, model and workload on several machines: each against its own baseline, none ranked against another.
function sideBySide({ heading, tables, notes, legend }, place) {
  const [title, ...lines] = heading;
  return section(
    `machines-${place + 1}`, title,
    lines.map((line) => el("p", { class: "rest" }, named(line))),
    tables.map(([titles, rows]) => region(titles[0], table(`${title}: ${titles[0]}`, titles, rows.map((row) => row.map(named)), { class: "overview" }))),
    notes.length ? el("ul", {}, notes.map((note) => el("li", {}, prose(note)))) : null,
    el("p", { class: "rest" }, legend),
  );
}

const SAVINGS = new Set(["train_memory", "infer_memory", "checkpoint"]);

// The clear difference that is largest; where rows are ranked, of those that are.
function best(board, wanted) {
  const ranked = board.rows.rank.some((rank) => !isMissing(rank));
  const found = board.measures.flatMap((measure) =>
    board.rows.stack.flatMap((name, i) => {
      const ratio = board.values[measure.key].ratio[i];
      const good = GOOD.has(board.values[measure.key].verdict[i]) && ratio > 0 && (!ranked || !isMissing(board.rows.rank[i]));
      return good && wanted(measure, i) ? [{ name, ratio, title: measure.title, size: Math.abs(Math.log(ratio)) }] : [];
    }),
  );
  const top = found.sort((a, b) => b.size - a.size)[0];
  return top ? [el("b", {}, written(top.ratio, "ratio")), " ", named(top.name), el("small", {}, top.title)] : el("small", {}, "none clear");
}
