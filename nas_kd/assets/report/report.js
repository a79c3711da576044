"use strict";
const page = JSON.parse(document.getElementById("data").textContent);
const byNumber = new Map(page.trials.map((trial) => [trial.number, trial]));
const plots = [...document.querySelectorAll("[data-figure]")];
const $ = (id) => document.getElementById(id);
const narrow = matchMedia("(max-width: 30rem)");
let chosen = null;

function make(tag, text, attributes = {}) {
  const element = document.createElement(tag);
  if (text !== undefined && text !== null) element.textContent = text;
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
}

// ---------------------------------------------------------------- plots

function colours() {
  const style = getComputedStyle(document.documentElement);
  const of = (name) => style.getPropertyValue(name).trim();
  return { fg: of("--fg"), line: of("--line"), accent: of("--accent"), bg: of("--bg") };
}

function painted(layout) {
  const { fg, line, bg } = colours();
  const axis = { gridcolor: line, zerolinecolor: line, linecolor: line, automargin: true };
  const legend = { orientation: "h", xref: "container", x: 0, yref: "container", yanchor: "bottom", y: 0,
    bgcolor: "rgba(0,0,0,0)", maxheight: 1, font: { size: narrow.matches ? 10 : 13 } };
  return {
    ...layout,
    xaxis: { ...axis, ...layout.xaxis }, yaxis: { ...axis, ...layout.yaxis },
    legend, font: { color: fg, size: 13 }, paper_bgcolor: bg, plot_bgcolor: bg,
    margin: { l: 60, r: 12, t: 12, b: 84 }, hovermode: "closest", dragmode: false,
  };
}

function inked(trace) {
  if (trace.meta !== "ink" && trace.meta !== "accent") return trace;
  const color = trace.meta === "ink" ? colours().fg : colours().accent;
  const marker = trace.marker ? { marker: { ...trace.marker, color } } : {};
  return { ...trace, line: { ...trace.line, color }, ...marker };
}

function ring() {
  return {
    type: "scatter", mode: "markers", x: [], y: [], name: "chosen", showlegend: false, hoverinfo: "skip",
    marker: { symbol: "circle-open", size: 20, color: colours().fg, line: { width: 2 } },
  };
}

function ringed(figure) {
  const x = [], y = [];
  if (chosen !== null && figure.data.some((trace) => trace.mode === "markers")) {
    for (const trace of figure.data) (trace.customdata || []).forEach((number, i) => {
      if (number === chosen) { x.push(trace.x[i]); y.push(trace.y[i]); }
    });
  }
  return { ...ring(), x, y };
}

// The chosen trial's curve, where it is not among those of the front that are drawn.
function added(div, figure) {
  const trial = byNumber.get(chosen);
  const there = figure.data.some((trace) => (trace.customdata || []).includes(chosen));
  if (div.dataset.figure !== "curves" || there || !trial || !trial.rd) return [];
  return [{
    type: "scatter", mode: "lines+markers", name: `trial ${chosen}, chosen`, line: { color: colours().fg },
    marker: { symbol: "circle-open", size: 9 }, customdata: trial.rd.map(() => chosen),
    x: trial.rd.map(([rate]) => rate), y: trial.rd.map(([, quality]) => quality),
    hovertemplate: `trial ${chosen}<br>%{x:.3f} bpp<br>%{y:.2f} dB<extra></extra>`,
  }];
}

// Names beside marks that would cover one another, or leave the plot: the mark says its own when it is pointed at.
function unclutter(div) {
  const frame = div.querySelector(".bglayer rect, .plotbg, .nsewdrag").getBoundingClientRect();
  const kept = [];
  for (const name of div.querySelectorAll(".textpoint text")) {
    const box = name.getBoundingClientRect();
    const inside = box.left >= frame.left && box.right <= frame.right && box.top >= frame.top && box.bottom <= frame.bottom;
    const covers = (other) => box.left < other.right && other.left < box.right && box.top < other.bottom && other.top < box.bottom;
    const fits = inside && !kept.some(covers);
    name.style.visibility = fits ? "" : "hidden";
    if (fits) kept.push(box);
  }
}

function draw() {
  const config = { responsive: true, displaylogo: false, displayModeBar: false };
  for (const div of plots) {
    const figure = page.figures[div.dataset.figure];
    const bare = Boolean(div.data);
    const data = [...figure.data.map((trace, i) =>
      bare && div.data[i] ? { ...inked(trace), visible: div.data[i].visible } : inked(trace)), ...added(div, figure), ringed(figure)];
    Plotly.react(div, data, painted(figure.layout), config);
    if (!bare) div.on("plotly_afterplot", () => unclutter(div));
    if (!bare) div.on("plotly_click", (event) => {
      const number = event.points[0].customdata;
      if (typeof number === "number") choose(number, true);
    });
  }
}

// ---------------------------------------------------------------- one trial

function table(caption, head, rows) {
  const made = make("table");
  made.append(make("caption", caption));
  const top = made.createTHead().insertRow();
  head.forEach((text, i) => top.append(make("th", text, i ? {} : { class: "words" })));
  const body = made.createTBody();
  for (const row of rows) {
    const line = body.insertRow();
    row.forEach((text, i) => line.append(make("td", text, i ? {} : { class: "words" })));
  }
  return made;
}

function facts(trial) {
  const list = make("dl", null, { class: "facts" });
  for (const [name, text] of trial.facts) list.append(make("dt", name), make("dd", text));
  return list;
}

function choose(number, scroll) {
  const trial = byNumber.get(number);
  if (!trial) return;
  chosen = number;
  $("pick").value = String(number);
  const cards = make("div", null, { class: "cards" });
  cards.append(facts(trial));
  if (trial.rd) cards.append(table("By level, rate estimated", ["level", "bpp", "PSNR dB"], trial.rd.map(
    ([rate, quality], i) => [i + 1, rate.toFixed(4), quality.toFixed(2)])));
  if (trial.parts) cards.append(table("Multiply-accumulates by part", ["part", "MMAC", "share"], trial.parts.map(
    ([name, macs, share]) => [name, (macs / 1e6).toFixed(1), (100 * share).toFixed(1) + " %"])));
  $("detail").replaceChildren(cards);
  for (const row of document.querySelectorAll("#trials tbody tr")) {
    row.classList.toggle("chosen", Number(row.dataset.number) === number);
  }
  draw();
  compareTo(number);
  if (scroll) $("trial").scrollIntoView({ block: "nearest" });
}

// ---------------------------------------------------------------- the table

const order = { column: 0, down: false };

function compared(a, b) {
  const absent = (v) => v === null || v === undefined || v === "";
  if (absent(a) || absent(b)) return absent(a) - absent(b);
  const less = typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b));
  return order.down ? -less : less;
}

function shown(value, digits) {
  return typeof value === "number" && digits !== null ? value.toFixed(digits) : value ?? "";
}

function fill() {
  const rows = [...page.trials].sort((a, b) => compared(a.row[order.column], b.row[order.column]));
  const body = $("trials").tBodies[0];
  body.replaceChildren(...rows.map((trial) => {
    const row = make("tr", null, { "data-number": trial.number, tabindex: "0" });
    row.classList.toggle("front", trial.front);
    row.classList.toggle("chosen", trial.number === chosen);
    trial.row.forEach((value, i) => {
      const { digits, hidden } = page.columns[i];
      if (!hidden) row.append(make("td", shown(value, digits), digits === null ? { class: "words" } : {}));
    });
    row.onclick = () => choose(trial.number, true);
    row.onkeydown = (event) => { if (event.key === "Enter") choose(trial.number, true); };
    return row;
  }));
  [...$("trials").tHead.rows[0].cells].forEach((cell, i) => {
    cell.setAttribute("aria-sort", i !== order.column ? "none" : order.down ? "descending" : "ascending");
  });
}

function heading() {
  const row = $("trials").tHead.insertRow();
  page.columns.forEach(({ name, digits, hidden }, i) => {
    if (hidden) return;
    const cell = make("th", null, digits === null ? { class: "words" } : {});
    const button = make("button", name, { type: "button" });
    button.onclick = () => {
      order.down = order.column === i && !order.down;
      order.column = i;
      fill();
    };
    cell.append(button);
    row.append(cell);
  });
}

function csv() {
  const quoted = (value) => {
    const text = String(value ?? "");
    return /[",\n]/.test(text) ? '"' + text.replaceAll('"', '""') + '"' : text;
  };
  const rows = [page.columns.map((column) => column.name), ...page.trials.map((trial) => trial.row)];
  return rows.map((row) => row.map(quoted).join(",")).join("\n") + "\n";
}

function download() {
  const link = make("a", null, { download: page.study + ".csv" });
  link.href = URL.createObjectURL(new Blob([csv()], { type: "text/csv" }));
  link.click();
  URL.revokeObjectURL(link.href);
}

// ---------------------------------------------------------------- reconstructions

function options(select, pairs) {
  select.replaceChildren(...pairs.map(([value, text]) => make("option", text, { value })));
}

const keys = ["trial", "picture", "level"];

// What is there of the picture that is chosen; whole pictures are of few trials and one level.
function fitting() {
  const of = page.shots.filter((shot) => shot.picture === $("shot-picture").value);
  for (const key of ["trial", "level"]) {
    const there = new Set(of.map((shot) => String(shot[key])));
    for (const option of $(`shot-${key}`).options) option.disabled = !there.has(option.value);
  }
  const wants = (key) => (shot) => String(shot[key]) === $(`shot-${key}`).value;
  const sameTrial = of.filter(wants("trial"));
  return sameTrial.find(wants("level")) ?? sameTrial[0] ?? of.find(wants("level")) ?? of[0];
}

function compare() {
  const shot = fitting();
  for (const key of keys) $(`shot-${key}`).value = String(shot[key]);
  const webp = $("shot-other").value === "webp" && shot.webp;
  $("other").src = webp ? shot.webp.uri : page.originals[shot.picture];
  $("coded").src = shot.uri;
  $("compare").classList.toggle("whole", page.frames.includes(shot.picture));
  $("said").textContent = `left: trial ${shot.trial}, level ${shot.level}, ${shot.said}; `
    + (webp ? `right: WebP, ${shot.webp.said}` : "right: the original");
}

function compareTo(number) {
  const select = $("shot-trial");
  if (select && [...select.options].some((option) => option.value === String(number) && !option.disabled)) {
    select.value = String(number);
    compare();
  }
}

function pictures() {
  if (!page.shots.length) return;
  const distinct = (key) => [...new Set(page.shots.map((shot) => shot[key]))];
  options($("shot-trial"), distinct("trial").map((n) => [n, `trial ${n}`]));
  options($("shot-picture"), distinct("picture").map((name) => [name, name]));
  options($("shot-level"), distinct("level").map((level) => [level, `level ${level}`]));
  options($("shot-other"), [...(page.shots[0].webp ? [["webp", "beside WebP of equal size"]] : []), ["original", "beside the original"]]);
  for (const key of [...keys, "other"]) $(`shot-${key}`).onchange = compare;
  $("shot-level").value = String(page.opens.level);
  $("slide").oninput = () => $("compare").style.setProperty("--cut", $("slide").value + "%");
  compare();
}

heading();
fill();
options($("pick"), page.trials.map((trial) => [trial.number, String(trial.number)]));
$("pick").onchange = () => choose(Number($("pick").value), false);
$("csv").onclick = download;
pictures();
for (const query of [matchMedia("(prefers-color-scheme: dark)"), narrow]) query.addEventListener("change", draw);
const first = byNumber.get(page.opens.trial) ?? page.trials[0];
if (first) choose(first.number, false); else draw();
