// Keeps an open page up to date: the server sends texts, bar lengths and plot lines, and this script puts
// them into the elements that name them. It never creates markup from them.
"use strict";

const live = document.getElementById("live");
const table = document.getElementById("requests");
const ROWS_MAX = 200;
let seen = Number(document.body.dataset.after.split("-")[1] || 0);
let lostAt = null;

function localTime(element) {
  const at = new Date(element.dateTime);
  if (Number.isNaN(at.getTime())) return;
  const day = at.toDateString() === new Date().toDateString();
  const short = { hour: "2-digit", minute: "2-digit", hourCycle: "h23" };
  const clock = at.toLocaleTimeString([], day ? { ...short, second: "2-digit" } : short);
  const text = day ? clock : `${at.toLocaleDateString([], { dateStyle: "medium" })}, ${clock}`;
  if (element.textContent !== text) element.textContent = text;
}

function show(root, view) {
  if (view.tone) root.dataset.tone = view.tone;
  for (const element of root.querySelectorAll("[data-bind]")) {
    const text = String(view[element.dataset.bind] ?? "");
    if (element.dateTime !== undefined) {
      element.dateTime = text;
      localTime(element);
    } else if (element.textContent !== text) {
      element.textContent = text;
    }
    if (element.classList.contains("detail") || element.dataset.bind === "retry") element.hidden = !text;
  }
  for (const element of root.querySelectorAll("[data-tone-from]")) {
    element.dataset.tone = view[element.dataset.toneFrom];
  }
  for (const element of root.querySelectorAll("[data-when]")) element.hidden = !view[element.dataset.when];
  for (const bar of root.querySelectorAll("[data-bar]")) {
    bar.max = Math.max(1, view[`${bar.dataset.bar}_life`]);
    bar.value = view[`${bar.dataset.bar}_left`];
  }
  for (const path of root.querySelectorAll("[data-path]")) path.setAttribute("d", view[path.dataset.path]);
  for (const plot of root.querySelectorAll("[data-label]")) {
    plot.setAttribute("aria-label", view[plot.dataset.label]);
  }
}

function showState(state) {
  const names = document.body.dataset.names.split(" ");
  const summary = document.getElementById("summary");
  // A different set of accounts needs a new page. Sorted, because JavaScript puts names like "7" first.
  if (summary && names.sort().join() !== Object.keys(state.accounts).sort().join()) return location.reload();
  for (const name of names) {
    const card = document.getElementById(`account-${name}`);
    if (card && state.accounts[name]) show(card, state.accounts[name]);
  }
  if (!summary) return;
  show(summary, state.summary);
  document.title = state.summary.title;
  for (const plots of document.querySelectorAll("[data-upstream]")) {
    const view = state.pacing[plots.dataset.upstream];
    if (view) show(plots, view);
  }
}

function showRows({ fresh, last, rows }) {
  if (!table) return;
  if (fresh) {
    seen = 0;
    table.replaceChildren();
  }
  const empty = document.getElementById("row").content.firstElementChild;
  rows.forEach((view, index) => {
    if (last - rows.length + 1 + index <= seen) return;
    const row = empty.cloneNode(true);
    show(row, view);
    row.classList.add("new");
    table.prepend(row);
  });
  seen = Math.max(seen, last);
  while (table.rows.length > ROWS_MAX) table.lastElementChild.remove();
  document.getElementById("requests-table").hidden = !table.rows.length;
  document.getElementById("no-requests").hidden = Boolean(table.rows.length);
}

function tellConnection(text, tone) {
  live.hidden = false;
  live.dataset.tone = tone;
  if (live.textContent !== text) live.textContent = text;
}

function listen() {
  const source = new EventSource(`/events?after=${document.body.dataset.after}`);
  source.addEventListener("state", (event) => {
    lostAt = null;
    document.body.classList.remove("stale");
    tellConnection("live", "good");
    showState(JSON.parse(event.data));
  });
  source.addEventListener("rows", (event) => showRows(JSON.parse(event.data)));
  source.addEventListener("error", () => {
    lostAt ??= new Date();
    document.body.classList.add("stale");
    if (document.getElementById("summary")) document.title = "Not live · cfproxy";
    const since = lostAt.toLocaleTimeString([], { hourCycle: "h23" });
    if (source.readyState === EventSource.CLOSED) {
      tellConnection(`not live since ${since}: reload the page`, "warn");
    } else {
      tellConnection(`cfproxy has not responded since ${since}; start it with: cfproxy serve`, "bad");
    }
  });
}

document.querySelectorAll("time").forEach(localTime);
listen();
