"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const $ = id => document.getElementById(id);
const make = (tag, text, attributes = {}) => {
  const node = document.createElement(tag);
  if (text !== undefined) node.textContent = text;
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  return node;
};

// --- light and dark
const root = document.documentElement;
const dark = () => root.dataset.theme === "dark";
let stored = null;
try { stored = localStorage.getItem("theme"); } catch (error) { /* file:// may forbid storage */ }
root.dataset.theme = stored || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
$("theme").addEventListener("click", () => {
  root.dataset.theme = dark() ? "light" : "dark";
  try { localStorage.setItem("theme", root.dataset.theme); } catch (error) { /* then the choice is not remembered */ }
});

// --- figures: drawn as SVG, again whenever the page becomes wider or narrower
const figures = Object.fromEntries(data.figures.map(f => [f.name, f]));
const NS = "http://www.w3.org/2000/svg";
const DASHES = ["", "7 4", "2 3", "8 3 2 3"];
const shape = (parent, tag, attributes = {}, text) => {
  const node = document.createElementNS(NS, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  if (text !== undefined) node.textContent = text;
  parent.append(node);
  return node;
};
const number = v => v === 0 ? "0" : Math.abs(v) >= 1e4 ? v.toExponential(1) : String(Number(v.toPrecision(3)));
const signed = (v, digits) => (v > 0 ? "+" : "") + v.toFixed(digits);
const colour = i => data.colours[i % data.colours.length];
const dash = i => DASHES[Math.floor(i / data.colours.length) % DASHES.length];
const shorten = (text, most) => text.length <= most ? text : text.slice(0, most - 1) + "…";
const rowsOf = columns => {
  const names = Object.keys(columns);
  return columns[names[0]].map((_, i) => Object.fromEntries(names.map(n => [n, columns[n][i]])));
};
// Round values inside [low, high], about `count` of them.
const ticks = (low, high, count) => {
  const rough = (high - low) / count, power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find(m => m * power >= rough * 0.999);
  const found = [];
  for (let v = Math.ceil(low / step - 1e-9) * step; v <= high + step * 1e-9; v += step) found.push(Math.abs(v) < step * 1e-9 ? 0 : v);
  return found;
};
// The ends of an axis. A single value gets some room on both sides.
const ends = values => {
  const low = Math.min(...values), high = Math.max(...values);
  const room = high > low ? (high - low) * 0.05 : Math.max(Math.abs(low) * 0.05, 0.02);
  return [low - room, high + room];
};
const tell = (node, place, text) => {
  node.setAttribute("data-tip", text);
  const show = () => {
    place.querySelector(".tip")?.remove();
    const tip = make("div", text, {class: "tip", role: "tooltip"}), at = node.getBoundingClientRect(), box = place.getBoundingClientRect();
    place.append(tip);
    const left = at.left + at.width / 2 - box.left - tip.offsetWidth / 2;
    tip.style.left = `${Math.max(0, Math.min(left, box.width - tip.offsetWidth))}px`;
    tip.style.top = `${at.top - box.top - tip.offsetHeight - 6}px`;
  };
  node.addEventListener("pointerenter", show);
  node.addEventListener("pointerleave", () => place.querySelector(".tip")?.remove());
};
const canvasOf = (place, height, title) => {
  const width = Math.max(200, place.clientWidth);
  const svg = shape(place, "svg", {viewBox: `0 0 ${width} ${height}`, height, role: "img"});
  shape(svg, "title", {}, title);
  return [svg, width];
};
// Values of the horizontal axis under the lines of the grid.
const across = (svg, values, scale, top, bottom, text = number) => {
  for (const v of values) {
    shape(svg, "line", {class: "grid-line", x1: scale(v), x2: scale(v), y1: top, y2: bottom});
    shape(svg, "text", {class: "soft", x: scale(v), y: bottom + 16, "text-anchor": "middle"}, text(v));
  }
};
const hidden = Object.fromEntries(data.figures.map(f => [f.name, new Set(f.shown ? f.groups.filter(g => !f.shown.includes(g)) : [])]));
const legend = (place, f, present) => {
  if (f.groups.length < 2) return;
  const box = make("div", undefined, {class: "legend"}), off = hidden[f.name];
  f.groups.forEach((name, i) => {
    if (!present.has(name)) return;
    const button = make("button", undefined, {type: "button", "aria-pressed": !off.has(name)}), line = make("i");
    line.style.borderTop = `3px ${dash(i) ? "dashed" : "solid"} ${colour(i)}`;
    button.append(line, make("span", name));
    button.addEventListener("click", () => { if (!off.delete(name)) off.add(name); drawOne(place); });
    box.append(button);
  });
  place.append(box);
};
const kinds = {
  lines(place, f, rows) {
    const off = hidden[f.name], seen = rows.filter(r => !off.has(r[f.group]));
    if (f.y_title) place.append(make("div", f.y_title, {class: "axis"}));
    const [svg, width] = canvasOf(place, 300, f.title), left = 50, right = width - 16, top = 10, bottom = 268;
    const xs = [...new Set((seen.length ? seen : rows).map(r => r[f.x]))].sort((a, b) => a - b);
    const ys = (seen.length ? seen : rows).map(r => r[f.y]);
    const [x0, x1] = f.diagonal ? [Math.min(...xs, 0.5), 1] : xs.length === 1 ? [xs[0] - 1, xs[0] + 1] : [xs[0], xs[xs.length - 1]];
    const [y0, y1] = f.diagonal ? [Math.floor(10 * Math.min(x0, ...ys)) / 10, 1] : f.y === "rate" ? [0, Math.max(1, ...ys)] : ends(ys);
    const X = v => left + (v - x0) / (x1 - x0) * (right - left), Y = v => bottom - (v - y0) / (y1 - y0) * (bottom - top);
    across(svg, xs.length <= 5 && !f.diagonal ? xs : ticks(x0, x1, width < 500 ? 4 : 7), X, top, bottom);
    for (const v of ticks(y0, y1, 5)) {
      shape(svg, "line", {class: "grid-line", x1: left, x2: right, y1: Y(v), y2: Y(v)});
      shape(svg, "text", {class: "soft", x: left - 8, y: Y(v) + 4, "text-anchor": "end"}, number(v));
    }
    if (f.diagonal) { const low = Math.max(x0, y0); shape(svg, "line", {class: "diagonal", x1: X(low), y1: Y(low), x2: X(1), y2: Y(1)}); }
    f.groups.forEach((name, i) => {
      const own = seen.filter(r => r[f.group] === name);
      if (!own.length) return;
      const path = own.map((r, n) => `${n ? "L" : "M"}${X(r[f.x]).toFixed(1)} ${Y(r[f.y]).toFixed(1)}`).join("");
      if (own.length > 1) shape(svg, "path", {d: path, fill: "none", stroke: colour(i), "stroke-width": 2, "stroke-dasharray": dash(i)});
      for (const r of own) {
        const at = {cx: X(r[f.x]), cy: Y(r[f.y])};
        if (own.length < 16) shape(svg, "circle", {...at, r: own.length > 1 ? 3.5 : 5, fill: colour(i), class: "dot"});
        const count = r.count === undefined ? "" : `\n${r.count} instances`;
        tell(shape(svg, "circle", {...at, r: 8, class: "hit"}), place, `${name}\n${f.x_title || f.x} ${number(r[f.x])}: ${number(r[f.y])}${count}`);
      }
    });
    place.append(make("div", f.x_title || f.x, {class: "axis under"}));
    legend(place, f, new Set(rows.map(r => r[f.group])));
  },
  forest(place, f, rows) {
    rows = [...rows].reverse(); // the best first
    const narrow = place.clientWidth < 560, step = narrow ? 44 : 28, foot = 26;
    const [x0, x1] = ends([0, ...rows.flatMap(r => [r.low, r.high])]), digits = Math.max(0, Math.min(4, 2 - Math.floor(Math.log10(x1 - x0))));
    // A single seed has no interval.
    const says = r => signed(r.mean, digits) + (r.low < r.high ? ` [${signed(r.low, digits)}, ${signed(r.high, digits)}]` : "");
    const room = 14 + 6.8 * Math.max(...rows.map(r => says(r).length));
    const [svg, width] = canvasOf(place, rows.length * step + foot + 8, f.title), bottom = rows.length * step + 4;
    const left = narrow ? 8 : Math.min(0.34 * width, 12 + 7 * Math.max(...rows.map(r => r[f.y].length))), right = width - (narrow ? 12 : room);
    const X = v => left + (v - x0) / (x1 - x0) * (right - left);
    across(svg, ticks(x0, x1, narrow ? 4 : 6), X, 4, bottom);
    shape(svg, "line", {class: "zero", x1: X(0), x2: X(0), y1: 4, y2: bottom});
    rows.forEach((r, i) => {
      const y = i * step + (narrow ? 32 : step / 2 + 4), clear = r.low < r.high && (r.low > 0 || r.high < 0), ink = clear ? data.colours[0] : data.colours[6];
      const said = says(r);
      shape(svg, "text", {x: narrow ? left : left - 8, y: narrow ? y - 13 : y + 4, "text-anchor": narrow ? "start" : "end"}, shorten(r[f.y], Math.floor((narrow ? width - room : left) / 6.6)));
      shape(svg, "line", {x1: X(r.low), x2: X(r.high), y1: y, y2: y, stroke: ink, "stroke-width": 3, "stroke-linecap": "round"});
      shape(svg, "circle", {cx: X(r.mean), cy: y, r: 5.5, fill: ink, class: "dot"});
      shape(svg, "text", {class: "soft", x: width - 4, y: narrow ? y - 13 : y + 4, "text-anchor": "end"}, said);
      tell(shape(svg, "rect", {x: 0, y: i * step + 4, width, height: step, class: "hit"}), place, `${r[f.y]}: ${said}`);
    });
    place.append(make("div", f.x_title, {class: "axis under"}));
  },
  stack(place, f, rows) {
    const names = [...new Set(rows.map(r => r[f.y]))], narrow = place.clientWidth < 560, step = narrow ? 40 : 26;
    const [svg, width] = canvasOf(place, names.length * step + 34, f.title), bottom = names.length * step + 4;
    const left = narrow ? 8 : Math.min(0.34 * width, 12 + 7 * Math.max(...names.map(n => n.length))), right = width - 64;
    const total = name => rows.filter(r => r[f.y] === name).reduce((sum, r) => sum + r[f.x], 0);
    const most = Math.max(...names.map(total)) || 1, X = v => left + v / most * (right - left);
    across(svg, ticks(0, most, narrow ? 4 : 6), X, 4, bottom);
    names.forEach((name, i) => {
      const y = i * step + (narrow ? 20 : 6);
      shape(svg, "text", {x: narrow ? left : left - 8, y: narrow ? y - 4 : y + 13, "text-anchor": narrow ? "start" : "end"}, shorten(name, Math.floor((narrow ? width : left) / 6.6)));
      let at = 0;
      f.groups.forEach((part, g) => {
        const value = rows.filter(r => r[f.y] === name && r[f.group] === part).reduce((sum, r) => sum + r[f.x], 0);
        if (value) tell(shape(svg, "rect", {x: X(at), y, width: Math.max(1, X(at + value) - X(at)), height: 16, fill: colour(g)}), place, `${name}\n${part}: ${number(value)} s`);
        at += value;
      });
      shape(svg, "text", {class: "soft", x: X(at) + 6, y: y + 13}, `${number(at)} s`);
    });
    place.append(make("div", f.x_title, {class: "axis under"}));
    legendOnly(place, f);
  },
  bars(place, f, rows) { // dots on one line for each teacher: how far they lie apart is what matters
    const names = [...new Set(rows.map(r => r[f.x]))], step = 30, width0 = place.clientWidth, most = Math.max(1, ...rows.map(r => r[f.y]));
    const [svg, width] = canvasOf(place, names.length * step + 34, f.title), bottom = names.length * step + 4;
    const left = Math.min(0.4 * width0, 12 + 7 * Math.max(...names.map(n => n.length))), right = width - 16, X = v => left + v / most * (right - left);
    across(svg, ticks(0, most, width < 500 ? 4 : 5), X, 4, bottom);
    names.forEach((name, i) => {
      const y = i * step + step / 2 + 4, own = rows.filter(r => r[f.x] === name), values = own.map(r => X(r[f.y]));
      shape(svg, "text", {x: left - 10, y: y + 4, "text-anchor": "end"}, shorten(name, Math.floor(left / 6.6)));
      shape(svg, "line", {x1: Math.min(...values), x2: Math.max(...values), y1: y, y2: y, stroke: data.colours[6], "stroke-width": 3, opacity: 0.6});
      own.forEach((r, n) => {
        const shift = (n - (own.length - 1) / 2) * 4;
        tell(shape(svg, "circle", {cx: X(r[f.y]), cy: y + shift, r: 5.5, fill: colour(f.groups.indexOf(r[f.group])), class: "dot"}), place, `${name}, ${r[f.group]}: ${number(r[f.y])}`);
      });
    });
    place.append(make("div", f.y_title, {class: "axis under"}));
    legendOnly(place, f);
  },
  matrix(place, f, rows) {
    const labels = [...new Set(rows.map(r => r[f.y]))];
    const table = make("table", undefined, {class: "matrix"}), head = make("thead"), body = make("tbody"), first = make("tr");
    first.append(make("th", "label \\ predicted"), ...labels.map(l => make("th", l, {scope: "col", title: l})));
    head.append(first);
    for (const label of labels) {
      const line = make("tr");
      line.append(make("th", label, {scope: "row", title: label}));
      for (const r of rows.filter(r => r[f.y] === label)) {
        const cell = make("td", r.count);
        cell.append(make("small", `${Math.round(100 * r.share)} %`));
        cell.style.background = `rgba(var(--heat), ${(0.65 * r.share).toFixed(3)})`;
        line.append(cell);
      }
      body.append(line);
    }
    table.append(head, body);
    framed(place, table);
    framed(place, classTable(f, place));
  },
};
// Colours alone, where nothing can be hidden.
const legendOnly = (place, f) => {
  if (f.groups.length < 2) return;
  const box = make("div", undefined, {class: "legend"});
  f.groups.forEach((name, i) => {
    const item = make("span", undefined, {class: "key"}), line = make("i");
    line.style.borderTop = `3px solid ${colour(i)}`;
    item.append(line, make("span", name)); box.append(item);
  });
  place.append(box);
};
const classTable = (f, place) => {
  const table = make("table"), head = make("thead"), body = make("tbody"), first = make("tr");
  first.append(...["label", "precision", "recall", "F1", "instances"].map(t => make("th", t, {scope: "col"})));
  head.append(first);
  for (const row of data.classes[f.name.replace("confusion-", "")]?.[agentOf(place)] ?? []) {
    const line = make("tr");
    line.append(make("td", row.label), ...["precision", "recall", "f1"].map(k => make("td", row[k].toFixed(3))), make("td", row.count));
    body.append(line);
  }
  table.append(head, body);
  return table;
};
// A table that scrolls inside its frame, with a line below that says so where it is too wide.
const framed = (place, table) => {
  const frame = make("div", undefined, {class: "frame"}), wrap = make("div", undefined, {class: "scroll"});
  wrap.append(table); frame.append(wrap); place.append(frame, make("p", "more columns: scroll sideways →", {class: "cue"}));
};
const agentOf = place => place.closest("section").querySelector("select.agent").value;
const drawOne = place => {
  const f = figures[place.dataset.figure], part = f.parts[f.facet ? agentOf(place) : ""];
  place.textContent = "";
  if (part) kinds[f.kind](place, f, rowsOf(part));
  else place.append(make("p", "Not recorded for this agent.", {class: "soft"}));
};
const cues = () => {
  for (const frame of document.querySelectorAll(".frame")) {
    const box = frame.firstElementChild, left = box.scrollWidth - box.clientWidth - box.scrollLeft;
    frame.classList.toggle("wide-table", box.scrollWidth > box.clientWidth + 2);
    frame.classList.toggle("more", left > 2);
    box.onscroll = cues;
  }
};
const draw = () => { for (const place of document.querySelectorAll(".plot")) drawOne(place); cues(); };
const startWithLearnt = select => { // or with the first agent, if none is learnt
  const option = [...select.options].find(o => data.learnt.includes(o.value)) || select.options[0];
  select.value = option.value;
};
for (const select of document.querySelectorAll("select.agent")) { startWithLearnt(select); select.addEventListener("change", draw); }
draw();
let drawnAt = innerWidth;
addEventListener("resize", () => { if (innerWidth !== drawnAt) { drawnAt = innerWidth; draw(); } });

// --- tables
for (const section of document.querySelectorAll("#tables section")) {
  const body = section.querySelector("tbody"), heads = [...section.querySelectorAll("th")];
  heads.forEach((head, column) => head.firstElementChild.addEventListener("click", () => {
    const up = column === 0 ? head.ariaSort !== "ascending" : head.ariaSort === "descending";
    heads.forEach(h => h.removeAttribute("aria-sort"));
    head.ariaSort = up ? "ascending" : "descending";
    const key = row => {
      const cell = row.cells[column];
      return column === 0 ? cell.textContent : cell.dataset.value === undefined ? null : Number(cell.dataset.value);
    };
    const rows = [...body.rows].sort((a, b) => {
      const [x, y] = [key(a), key(b)];
      if (x === null || y === null) return (x === null) - (y === null);
      return (x < y ? -1 : x > y ? 1 : 0) * (up ? 1 : -1);
    });
    body.append(...rows);
  }));
  section.querySelector(".filter").addEventListener("input", event => {
    const words = event.target.value.toLowerCase();
    for (const row of body.rows) row.hidden = !row.cells[0].textContent.toLowerCase().includes(words);
  });
}

// --- instances
const known = data.explorer;
let current = 0, detail = () => {};
if (known) {
  const bytes = Uint8Array.from(atob(known.vectors), c => c.charCodeAt(0)), vectors = new Int8Array(bytes.buffer);
  const argmax = p => p.indexOf(Math.max(...p));
  for (const name of Object.keys(known.agents)) $("by").append(make("option", name));
  startWithLearnt($("by"));
  const agent = () => known.agents[$("by").value];
  const is = {
    all: () => true,
    disagree: i => new Set(known.probs[i].map(argmax)).size > 1,
    improved: i => argmax(known.before[i]) !== known.gold[i] && argmax(agent().after[i]) === known.gold[i],
    worsened: i => argmax(known.before[i]) === known.gold[i] && argmax(agent().after[i]) !== known.gold[i],
    alone: i => agent().choice[i].filter(w => w > 0).length < 2,
  };
  const bar = p => { const out = make("span", undefined, {class: "bar"}); const fill = make("i"); fill.style.width = `${100 * p}%`; out.append(fill); return out; };
  const row = (cells, body, tag = "td") => {
    const line = make("tr");
    for (const cell of cells) {
      const node = make(tag, cell instanceof Array ? cell[0] : cell);
      if (cell instanceof Array && cell[1] !== undefined) node.append(bar(cell[1]));
      if (cell instanceof Array && cell[2]) node.className = cell[2];
      line.append(node);
    }
    body.append(line);
  };
  detail = () => {
    const box = $("detail"), i = current, gold = known.gold[i], choice = agent().choice[i];
    box.textContent = "";
    if (i === undefined) { box.append(make("p", "No instance matches.", {class: "soft"})); return; }
    for (const text of known.texts[i]) box.append(make("blockquote", text));
    const facts = make("p");
    facts.append(make("span", `label: ${gold < 0 ? "unknown" : known.labels[gold]}`, {class: "chip"}), make("span", known.ids[i], {class: "chip soft"}));
    box.append(facts);
    const table = make("table"), head = make("thead"), body = make("tbody");
    row(["", ...known.labels, "loss", "chosen"], head, "th");
    const lossOf = (p, y) => y < 0 ? "" : (-Math.log(Math.max(p[y], 5e-4))).toFixed(2);
    const says = p => p.map((v, c) => [v.toFixed(2), v, c === argmax(p) ? (c === gold ? "good" : "bad") : ""]);
    known.teachers.forEach((name, k) => {
      const weight = choice[k];
      row([name, ...says(known.probs[i][k]), known.losses[i][k].toFixed(2), weight < 0 ? "not seen" : Number.isInteger(weight) ? (weight ? "✓" : "–") : weight.toFixed(2)], body);
    });
    row(["student before", ...says(known.before[i]), lossOf(known.before[i], gold), ""], body);
    row(["student after", ...says(agent().after[i]), lossOf(agent().after[i], gold), ""], body);
    table.append(head, body);
    framed(box, table);
    cues();
    box.append(make("p", `The state that the agent sees: the encoder's vector of the text, drawn below (${known.width} numbers; blue is negative, red is positive), and the teachers' probabilities and losses above.`, {class: "soft"}));
    const canvas = make("canvas", undefined, {width: known.width, height: 1}), pen = canvas.getContext("2d");
    for (let d = 0; d < known.width; d++) {
      const v = vectors[i * known.width + d] / 127;
      pen.fillStyle = v < 0 ? `rgba(68,119,170,${-v})` : `rgba(238,102,119,${v})`;
      pen.fillRect(d, 0, 1, 1);
    }
    box.append(canvas);
  };
  const list = () => {
    const words = $("search").value.toLowerCase(), test = is[$("which").value];
    const found = known.texts.map((_, i) => i).filter(i => test(i) && known.texts[i].join(" ").toLowerCase().includes(words));
    $("count").textContent = `${found.length} of ${known.texts.length}`;
    $("list").textContent = "";
    if (!found.includes(current)) current = found[0];
    for (const i of found) {
      const item = make("li", undefined, {role: "option", tabindex: 0, "aria-selected": i === current});
      item.append(make("span", known.texts[i].join(" / ")));
      const choose = () => {
        current = i;
        for (const other of $("list").children) other.setAttribute("aria-selected", other === item);
        detail();
      };
      item.addEventListener("click", choose);
      item.addEventListener("keydown", event => { if (event.key === "Enter") choose(); });
      $("list").append(item);
    }
    detail();
  };
  for (const id of ["search", "which", "by"]) $(id).addEventListener("input", list);
  list();
}
