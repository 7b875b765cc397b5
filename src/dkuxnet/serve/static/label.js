// The label folder: its list of scans, the tools to draw with, and saving. The server decides which scan is next.
import { clearDrawing, colours, drawFrom, drawn, drawnBytes, setDrawing, setTool, undo } from "/static/viewer.js";

const TOOLS = { v: "look", p: "pen", o: "ring", f: "fill", e: "eraser" }; // by key
const STARTS = { model: "the model’s map", label: "the saved label", empty: "nothing" };

const get = (id) => document.getElementById(id);
let scan = null; // what is drawn on: { name, id, loaded, start, version, saved }
let scans = []; // those of the folder, in the order to label them

export const active = () => scan !== null;
export const unsaved = () => scan !== null && drawn() !== scan.saved;

// The scans in their order, as buttons. open: called with the name of the one that is chosen.
export async function list(open) {
  const response = await fetch("/scans");
  const answer = await response.json();
  if (!response.ok) return void (get("scans-told").textContent = answer.detail);
  scans = answer.scans;
  const next = scans.find((each) => !each.labelled)?.name;
  get("scans-told").textContent = `${scans.filter((each) => each.labelled).length} of ${scans.length} scans have a label.`;
  get("scans-first").hidden = next === undefined;
  get("scans-first").textContent = `Label ${next}`;
  get("scans-first").onclick = () => open(next);
  get("scans-list").replaceChildren(...scans.map((each) => row(each, open)));
}

function row(each, open) {
  const button = Object.assign(document.createElement("button"), { type: "button" });
  const name = Object.assign(document.createElement("b"), { textContent: each.name });
  const state = Object.assign(document.createElement("span"), { className: each.labelled ? "done" : "soft", textContent: told(each) });
  button.append(name, state);
  button.addEventListener("click", () => open(each.name));
  const item = document.createElement("li");
  item.append(button);
  return item;
}

function told(each) {
  if (!each.labelled) return each.reason || "no label yet";
  if (!each.when) return "has a label";
  return `label${each.who ? ` by ${each.who}` : ""}, ${new Date(each.when).toLocaleString([], { dateStyle: "medium", timeStyle: "short" })}`;
}

// Tools for a scan that is shown; opened: what the server said of it. classes: those of the model.
export async function present(opened, classes, hasLabel) {
  scan = { ...opened, start: hasLabel ? "label" : "model", saved: 0, version: "" };
  get("classes").replaceChildren(...classes.map(choice));
  for (const option of get("start").options) option.disabled = option.value === "label" && !hasLabel;
  get("reason-told").textContent = told({ ...scans.find((each) => each.name === opened.name), ...opened });
  say(opened.labelled && !hasLabel ? "The label of this scan cannot be shown: see the warning." : "");
  await begin(scan.start);
  if (scan === null) return; // it was left meanwhile
  get("drawing").hidden = false;
  chosen("tool", "pen");
  use();
}

export function leave() {
  scan = null;
  clearDrawing();
  get("drawing").hidden = true;
}

function choice({ name, index }, place) {
  const label = Object.assign(document.createElement("label"), { className: "choice" });
  const input = Object.assign(document.createElement("input"), { type: "radio", name: "class", value: index, checked: place === 0 });
  const swatch = Object.assign(document.createElement("span"), { className: "swatch" });
  swatch.style.backgroundColor = `rgb(${colours(index).join(" ")})`;
  const key = Object.assign(document.createElement("kbd"), { textContent: index <= 9 ? index : "" });
  label.append(input, swatch, Object.assign(document.createElement("span"), { textContent: name }), key);
  return label;
}

async function begin(start) {
  const mine = scan;
  for (const id of ["start", "save"]) get(id).disabled = true;
  try {
    await drawFrom(start, mine.id);
  } finally {
    for (const id of ["start", "save"]) get(id).disabled = false;
  }
  mine.start = get("start").value = start;
  mine.saved = drawn();
  look();
}

const value = (name) => document.querySelector(`input[name="${name}"]:checked`)?.value;
const say = (text, wrong = false) => {
  get("saved").textContent = text;
  get("saved").classList.toggle("wrong", wrong);
};

function chosen(name, what) {
  const input = [...document.querySelectorAll(`input[name="${name}"]`)].find((each) => each.value === String(what));
  if (input) input.checked = true;
  return Boolean(input);
}

function use() {
  setTool(value("tool"), Number(value("class")), value("tool") === "ring" ? 1 : Number(get("size").value));
  get("size-told").textContent = get("size").value;
}

function look() {
  setDrawing(get("show-drawing").checked ? get("opacity-drawing").value / 100 : 0, get("outline-drawing").checked);
}

// A question with two answers; resolves to whether it was the first.
export function ask(text, yes, no) {
  const box = get("question");
  get("question-text").textContent = text;
  get("question-yes").textContent = yes;
  get("question-no").textContent = no;
  return new Promise((resolve) => {
    const end = (answer) => {
      box.onclose = null;
      box.close();
      resolve(answer);
    };
    get("question-yes").onclick = () => end(true);
    get("question-no").onclick = () => end(false);
    box.onclose = () => end(false); // by the escape key
    box.showModal();
    get("question-no").focus();
  });
}

// Saves; true where it is on the server's disk.
async function save(replace = scan.version) {
  const mine = scan;
  const state = drawn();
  say("Saving …");
  get("save").disabled = true;
  try {
    const who = get("who").value.trim();
    remember(who);
    const query = new URLSearchParams({ name: mine.name, loaded: mine.loaded, start: mine.start, replace, who });
    const response = await fetch(`/scans/label?${query}`, { method: "PUT", body: await drawnBytes() });
    const answer = await response.json();
    if (response.ok) {
      Object.assign(mine, { version: answer.version, saved: state });
      say(`Saved as labels/${mine.name}.nii.gz.`);
      return true;
    }
    if (!answer.version) return void say(typeof answer.detail === "string" ? answer.detail : "The server did not understand the drawing.", true);
    say("Not saved yet.", true);
    return (await ask(answer.detail, "Replace it", "Keep it")) ? await save(answer.version) : false;
  } catch {
    return void say("Not saved: the server does not answer. The drawing is still here; try again.", true);
  } finally {
    get("save").disabled = false;
  }
}

function remember(who) {
  try {
    localStorage.setItem("who", who);
  } catch {
    // a browser that stores nothing
  }
}

function key(event, open) {
  if (!scan || get("question").open || event.altKey || /^(text|search)$/.test(event.target.type)) return;
  const pressed = event.key.toLowerCase();
  const command = event.ctrlKey || event.metaKey;
  let known = true;
  if (command && pressed === "z") undo();
  else if (command && pressed === "s") save();
  else if (command) known = false;
  else if (/^[1-9]$/.test(pressed)) known = chosen("class", pressed);
  else if (TOOLS[pressed]) chosen("tool", TOOLS[pressed]);
  else if (pressed === "[" || pressed === "]") get("size").value = Number(get("size").value) + (pressed === "[" ? -1 : 1);
  else if (pressed === "n") open();
  else known = false;
  if (!known) return;
  event.preventDefault();
  event.stopImmediatePropagation();
  use();
}

// open: called with the name of a scan. The next one is asked of the server, who may have got labels meanwhile.
export function listen(open) {
  const onward = async () => {
    await list(open);
    const other = scans.find((each) => !each.labelled && each.name !== scan?.name);
    return other ? open(other.name) : say("Every other scan has a label.");
  };
  get("who").value = (() => {
    try {
      return localStorage.getItem("who") ?? "";
    } catch {
      return "";
    }
  })();
  get("drawing").addEventListener("input", ({ target }) => {
    if (["tool", "class"].includes(target.name) || target.id === "size") use();
  });
  for (const control of ["show-drawing", "opacity-drawing", "outline-drawing"]) get(control).addEventListener("input", look);
  get("drawing").addEventListener("submit", (event) => event.preventDefault());
  get("start").addEventListener("change", async ({ target }) => {
    const start = target.value;
    target.value = scan.start;
    if (!unsaved() || (await ask(`Throw this drawing away and begin with ${STARTS[start]}?`, "Throw away", "Keep it"))) await begin(start);
  });
  get("undo").addEventListener("click", undo);
  get("save").addEventListener("click", () => save());
  get("onward").addEventListener("click", onward);
  window.addEventListener("keydown", (event) => key(event, onward), { capture: true });
  window.addEventListener("beforeunload", (event) => unsaved() && event.preventDefault());
}
