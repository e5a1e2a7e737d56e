"use strict";
// Everything that comes from data is set as text (textContent), never as markup.
const PAGE = 25;

function make(tag, props, ...children) {
  const node = Object.assign(document.createElement(tag), props || {});
  node.append(...children.filter((child) => child !== null));
  return node;
}

// ------------------------------------------------------------------ tables that sort

function sortBy(table, column, header) {
  const body = table.tBodies[0];
  const down = header.getAttribute("aria-sort") !== "descending";
  for (const other of table.querySelectorAll("th[aria-sort]")) other.removeAttribute("aria-sort");
  header.setAttribute("aria-sort", down ? "descending" : "ascending");
  const key = (row) => {
    const cell = row.cells[column];
    if (column === 0) return cell.textContent;
    return cell.dataset.sort === undefined ? null : Number(cell.dataset.sort);
  };
  const rows = [...body.rows].sort((a, b) => {
    const [x, y] = [key(a), key(b)];
    if (x === null || y === null) return (x === null) - (y === null);
    const order = typeof x === "string" ? y.localeCompare(x) : x - y;
    return down ? -order : order;
  });
  body.append(...rows);
}

for (const table of document.querySelectorAll("table.sortable")) {
  const titles = [table.querySelector("th.label"), ...table.tHead.rows[1].cells];
  titles.forEach((header, column) => {
    const sort = () => sortBy(table, column, header);
    header.addEventListener("click", sort);
    header.addEventListener("keydown", (event) => {
      if (event.key === "Enter" || event.key === " ") { event.preventDefault(); sort(); }
    });
  });
}

// ------------------------------------------------------------------ every record

// An answer is [predicted, score, [said freely, score, before, name of a graded score], [hops asked, known, edited]], or null.
const marked = (score) => (score === null ? "" : score >= 1 ? "yes" : score <= 0 ? "no" : "part");

function shown(answer) {
  if (answer === null) return null;
  const [predicted, score, free, hops] = answer;
  const kind = marked(score);
  const parts = [make("span", { className: kind, textContent: predicted || "(nothing)" })];
  if (kind === "part") parts.push(make("span", { className: "kind", textContent: ` ${Math.round(100 * score)} %` }));
  if (free !== null) {
    parts.push(make("div", { className: marked(free[1]), textContent: `freely: ${free[0]}` }));
    if (free[3] !== "" && free[1] !== null) parts.push(make("div", { className: "kind", textContent: `${free[3]} ${Math.round(100 * free[1])} %` }));
    if (free[2] !== null && free[2] !== free[0]) parts.push(make("div", { className: "kind", textContent: `unedited: ${free[2]}` }));
  }
  if (hops !== null) parts.push(make("div", { className: "kind", textContent: `hops: ${hops[1]} of ${hops[0]} known, ${hops[2]} edited` }));
  return parts;
}

function caseTable(entry, rows) {
  const head = make("tr", null, ...["question", "expected", ...rows].map((t) => make("th", { textContent: t })));
  const body = make("tbody");
  for (const question of entry.q) {
    const tags = [question.kind, question.name, ...question.tags].filter(Boolean).join(" · ");
    const asked = make("td", null, make("div", { textContent: question.prompt }),
      make("span", { className: "kind", textContent: `${tags} · top ${question.k}` }));
    const cells = question.a.map((answer, n) => {
      const cell = make("td", null, ...(shown(answer) || []));
      cell.dataset.row = rows[n];
      return cell;
    });
    const expected = make("td", { textContent: question.target });
    expected.dataset.row = "expected";
    body.append(make("tr", null, asked, expected, ...cells));
  }
  return make("table", null, make("thead", null, head), body);
}

const rate = (entry, row, kind) => {
  const own = entry.q.filter((q) => q.kind === kind && q.a[row] !== null && q.a[row][1] !== null);
  return own.length ? own.reduce((sum, q) => sum + q.a[row][1], 0) / own.length : null;
};

function summary(entry, rows) {
  const edit = entry.q.find((q) => q.kind === "reliability") || entry.q[0];
  const text = edit ? `${edit.prompt} → ${edit.target}` : entry.id;
  const dots = rows.map((row, n) => {
    const parts = ["reliability", "generality", "locality"].map((kind) => rate(entry, n, kind));
    return `${row} ${parts.map((v) => (v === null ? "–" : Math.round(100 * v))).join("/")}`;
  });
  return make("summary", null, make("span", { textContent: text }),
    make("span", { className: "dots", textContent: dots.join(" · ") }));
}

const FILTERS = {
  "all": () => true,
  "edit not taken": (entry, row) => rate(entry, row, "reliability") !== null && rate(entry, row, "reliability") < 1,
  "paraphrase missed": (entry, row) => rate(entry, row, "generality") !== null && rate(entry, row, "generality") < 1,
  "neighbour moved": (entry, row) => rate(entry, row, "locality") !== null && rate(entry, row, "locality") < 1,
};

function choice(names, title) {
  const select = make("select", null, ...names.map((name, n) => make("option", { value: String(n), textContent: name })));
  return [select, make("label", null, title, select)];
}

function browse(place, own) {
  const sets = own.sets.filter((set) => set.cases.length);
  if (!sets.length) return;
  const [data, dataLabel] = choice(sets.map((set) => set.data), "data set");
  const [row, rowLabel] = choice(own.rows, "editor");
  const [what, whatLabel] = choice(Object.keys(FILTERS), "show");
  const words = make("input", { type: "search", placeholder: "words in a question or answer" });
  const count = make("p", { className: "caption" });
  const list = make("div");
  const more = make("button", { type: "button" });
  let found = [];
  let reached = 0;
  const next = () => {
    for (const entry of found.slice(reached, reached + PAGE)) {
      const details = make("details", { className: "case" }, summary(entry, own.rows));
      details.addEventListener("toggle", () => {
        if (details.open && details.childElementCount === 1) {
          for (const [n, error] of Object.entries(entry.errors || {})) details.append(make("p", { className: "no", textContent: `${own.rows[n]}: ${error}` }));
          details.append(caseTable(entry, own.rows));
        }
      });
      list.append(details);
    }
    reached = Math.min(reached + PAGE, found.length);
    more.hidden = reached >= found.length;
    more.textContent = `${found.length - reached} more`;
  };
  const show = () => {
    const set = sets[Number(data.value)];
    const wanted = Object.values(FILTERS)[Number(what.value)];
    const word = words.value.toLowerCase();
    found = set.cases.filter((entry) => wanted(entry, Number(row.value)) &&
      (!word || JSON.stringify(entry.q).toLowerCase().includes(word)));
    const left = set.left ? ` (${set.left} records are left out of this page)` : "";
    count.textContent = `${found.length} of ${set.cases.length} cases${left}; behind each editor: reliability / generality / locality in percent`;
    list.replaceChildren();
    reached = 0;
    next();
  };
  for (const node of [data, row, what]) node.addEventListener("change", show);
  words.addEventListener("input", show);
  more.addEventListener("click", next);
  place.append(make("h3", { textContent: "Records" }), make("div", { className: "filters" },
    dataLabel, rowLabel, whatLabel, make("label", null, "search", words)), count, list, more);
  show();
}

const all = JSON.parse(document.getElementById("records").textContent);
for (const place of document.querySelectorAll(".browser")) browse(place, all[Number(place.dataset.table)]);
