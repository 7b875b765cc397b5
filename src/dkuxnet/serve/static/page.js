// One scan from the drop to the download. The server decides; this file shows what it says.
import * as labelling from "/static/label.js";
import { colours, canDraw, clear, draw, setLayer, setPlanes } from "/static/viewer.js";

const POLL_MS = 300;
const SECTIONS = ["choose", "busy", "failure", "result"];
const STAGES = { reading: "Reading and checking the scan", segmenting: "Segmenting", writing: "Writing the results" };

const get = (id) => document.getElementById(id);
let about = null; // what the server is and takes
let current = null; // { id, scan } or { upload }, scan: of the label folder: the scan that the page is about; another object as soon as it is another

function show(section) {
  for (const id of SECTIONS) get(id).hidden = id !== section;
  if (section !== "choose") get(`${section}-title`).focus({ preventScroll: true });
}

function fail(name, reason) {
  get("failure-name").textContent = name;
  const text = reason.startsWith(`${name}: `) ? reason.slice(name.length + 2) : reason;
  get("reason").textContent = text.charAt(0).toUpperCase() + text.slice(1).replace(/([^.?!])$/, "$1.");
  show("failure");
}

function progress(text, share = null) {
  if (get("stage").textContent !== text) get("stage").textContent = text;
  if (share === null) get("bar").removeAttribute("value");
  else get("bar").value = share;
}

const megabytes = (bytes) => (bytes >= 2 ** 30 ? `${+(bytes / 2 ** 30).toFixed(1)} GB` : `${Math.round(bytes / 2 ** 20)} MB`);

async function detail(response) {
  try {
    const { detail } = await response.json();
    return typeof detail === "string" ? detail : "The server did not understand the request.";
  } catch {
    return `The server answered with error ${response.status}.`;
  }
}

// Why a file cannot be sent, known before it is; null where it can.
function refusal(file) {
  if (!about.accepted.some((ending) => file.name.toLowerCase().endsWith(ending)))
    return `The page takes files that end with ${about.accepted.join(", ")}. Export the scan as one of these.`;
  if (file.size > about.upload_bytes)
    return `The file has ${megabytes(file.size)}; this server takes ${megabytes(about.upload_bytes)} at most.`;
  return null;
}

async function start(file) {
  if (!(await leave())) return;
  const refused = refusal(file);
  if (refused) return fail(file.name, refused);
  get("busy-name").textContent = file.name;
  progress("Sending the scan", 0);
  show("busy");
  const mine = (current = { upload: new XMLHttpRequest() });
  const answer = await send(mine.upload, file);
  if (current !== mine) {
    if (answer.job) await fetch(`/jobs/${answer.job.id}`, { method: "DELETE" }).catch(() => null);
  } else if (answer.job) await follow((current = { id: answer.job.id }));
  else fail(file.name, answer.reason);
}

// XMLHttpRequest, since fetch does not say how much has been sent.
function send(request, file) {
  return new Promise((resolve) => {
    request.upload.onprogress = (event) =>
      progress(`Sending the scan: ${Math.round((100 * event.loaded) / event.total)} %`, event.loaded / event.total);
    request.onload = async () => {
      if (request.status === 201) resolve({ job: JSON.parse(request.responseText) });
      else resolve({ reason: await detail(new Response(request.responseText, { status: request.status })) });
    };
    request.onerror = () => resolve({ reason: "The connection to the server broke off. Is it still running?" });
    request.onabort = () => resolve({ reason: "Cancelled." });
    request.open("POST", `/jobs?name=${encodeURIComponent(file.name)}`);
    request.setRequestHeader("Content-Type", "application/octet-stream");
    request.send(file);
  });
}

// A scan of the label folder.
async function openScan(name) {
  if (!(await leave())) return;
  get("busy-name").textContent = name;
  progress("Opening the scan");
  show("busy");
  const mine = (current = {});
  let job;
  try {
    const response = await fetch(`/scans/open?name=${encodeURIComponent(name)}`, { method: "POST" });
    if (!response.ok) throw new Error(await detail(response));
    job = await response.json();
  } catch (error) {
    const reason = error instanceof TypeError ? "The server does not answer. Is it still running?" : error.message;
    return current === mine ? fail(name, reason) : null;
  }
  if (current === mine) return follow((current = { id: job.id, scan: { name, loaded: job.loaded, id: job.id, ...job.label } }));
  return fetch(`/jobs/${job.id}`, { method: "DELETE" }).catch(() => null);
}

async function follow(mine) {
  while (current === mine) {
    let job;
    try {
      const response = await fetch(`/jobs/${mine.id}`);
      if (!response.ok) throw new Error(await detail(response));
      job = await response.json();
    } catch (error) {
      const reason = error instanceof TypeError ? "The server does not answer. Is it still running?" : error.message;
      return current === mine ? fail("", reason) : null;
    }
    if (current !== mine) return null;
    if (job.state === "done") return present(mine, job);
    if (job.state === "failed") return fail(job.name, job.error);
    tell(job);
    await new Promise((resolve) => setTimeout(resolve, POLL_MS));
  }
}

function tell(job) {
  if (job.state === "waiting" && job.ahead)
    return progress(job.ahead === 1 ? "Waiting: one scan comes before yours" : `Waiting: ${job.ahead} scans come before yours`);
  if (job.total) return progress(`Segmenting: window ${job.done} of ${job.total}`, job.done / job.total);
  return progress(STAGES[job.stage] ?? "Working");
}

async function present(mine, job) {
  const { classes, warnings, shape, spacing_mm, seconds, step } = job.result;
  get("result-name").textContent = job.name;
  get("warnings").replaceChildren(...warnings.map((text) => Object.assign(document.createElement("li"), { textContent: text })));
  get("volumes").replaceChildren(...classes.map(volumeRow));
  Object.assign(get("download"), { href: `/jobs/${job.id}/label`, download: job.download, title: job.download });
  const thinned = step.some((s) => s > 1) ? ` Drawn is one voxel in ${step.join(" × ")}; the label map has all.` : "";
  get("facts").textContent = `${shape.join(" × ")} voxels of ${spacing_mm.map((s) => +s.toFixed(3)).join(" × ")} mm, segmented in ${seconds} s.${thinned}`;
  for (const each of document.querySelectorAll(".when-labelling")) each.hidden = !mine.scan;
  for (const each of document.querySelectorAll(".when-not-labelling")) each.hidden = Boolean(mine.scan);
  get("outline-classes").checked = Boolean(mine.scan);
  get("result-title").textContent = mine.scan ? "Label" : "Segmentation";
  show("result");
  const drawable = canDraw();
  for (const id of ["frame", "keys", "layers"]) get(id).hidden = !drawable;
  get("no-webgl").hidden = drawable;
  if (!drawable) return;
  try {
    await draw(get("canvas"), job, layers());
    setPlanes(get("planes").value);
    if (mine.scan && current === mine) await labelling.present(mine.scan, classes, job.result.drawn);
  } catch (error) {
    if (current !== mine) return;
    console.warn(error);
    for (const id of ["frame", "keys", "layers"]) get(id).hidden = true;
    get("no-webgl").hidden = false;
  }
}

function volumeRow({ name, index, voxels, volume_ml, confidence }) {
  const row = document.createElement("tr");
  const swatch = Object.assign(document.createElement("span"), { className: "swatch" });
  swatch.style.backgroundColor = `rgb(${colours(index).join(" ")})`;
  const head = Object.assign(document.createElement("th"), { scope: "row" });
  head.append(swatch, name);
  const digits = volume_ml >= 100 ? 0 : volume_ml >= 1 ? 1 : 3;
  const cell = Object.assign(document.createElement("td"), { textContent: `${volume_ml.toFixed(digits)} ml` });
  cell.title = `${voxels} voxels`;
  const sure = Object.assign(document.createElement("td"), { textContent: confidence === null ? "" : `confidence ${confidence.toFixed(2)}` });
  sure.title = "confidence: the mean probability of the class over its voxels";
  row.append(head, cell, sure);
  return row;
}

function layers() {
  const opacity = (name) => (get(`show-${name}`).checked ? get(`opacity-${name}`).value / 100 : 0);
  return { classes: opacity("classes"), uncertainty: opacity("uncertainty"), outline: get("outline-classes").checked };
}

// Forgets the scan, unless somebody wants to keep what they have drawn; returns whether it did.
async function leave() {
  if (labelling.unsaved() && !(await labelling.ask("This drawing is not saved. Leave it?", "Leave it", "Go back"))) return false;
  await forget();
  return true;
}

// The scan of before is deleted from the server too.
async function forget() {
  const before = current;
  labelling.leave();
  current = null;
  before?.upload?.abort();
  clear();
  if (before?.id) await fetch(`/jobs/${before.id}`, { method: "DELETE" }).catch(() => null);
}

async function refuse(reason) {
  if (await leave()) fail("", reason);
}

async function again() {
  const labelled = labelling.active();
  if (!(await leave())) return;
  show("choose");
  if (about.label_folder !== null) await labelling.list(openScan);
  get(labelled ? "scans-first" : "file").focus();
}

function listen() {
  get("file").addEventListener("change", () => {
    const [file] = get("file").files;
    if (file) start(file).finally(() => (get("file").value = ""));
  });
  for (const button of document.querySelectorAll(".again")) button.addEventListener("click", again);
  get("cancel").addEventListener("click", again);
  for (const name of ["classes", "uncertainty"])
    for (const control of [`show-${name}`, `opacity-${name}`, "outline-classes"])
      get(control).addEventListener("input", () => setLayer(name, layers()[name], layers().outline));
  get("planes").addEventListener("change", () => setPlanes(get("planes").value));
  get("layers").addEventListener("submit", (event) => event.preventDefault());
  window.addEventListener("pagehide", () => {
    if (current?.id) fetch(`/jobs/${current.id}`, { method: "DELETE", keepalive: true });
  });
  window.addEventListener("pageshow", (event) => {
    if (event.persisted) location.reload(); // the way back leads to a page whose scan is gone
  });
  window.addEventListener("dragover", (event) => {
    event.preventDefault();
    document.body.classList.add("dragging");
  });
  window.addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) document.body.classList.remove("dragging");
  });
  window.addEventListener("drop", (event) => {
    event.preventDefault();
    document.body.classList.remove("dragging");
    const [file, ...others] = event.dataTransfer.files;
    if (others.length) refuse(`These are ${others.length + 1} files, and the page takes one. Zip the files of a DICOM series, and drop the zip.`);
    else if (file) start(file);
  });
}

async function begin() {
  about = await (await fetch("/about")).json();
  get("model-name").textContent = about.model;
  get("model-classes").textContent = about.classes.join(", ");
  get("model-channels").textContent = about.channels.join(", ");
  get("limit").textContent = megabytes(about.upload_bytes);
  const here = ["localhost", "127.0.0.1", "[::1]"].includes(location.hostname);
  get("where").textContent = here ? "The scan stays on this machine." : `The scan is sent to ${location.host} and to nobody else.`;
  get("privacy").textContent = about.kept
    ? "This server keeps every scan and result in a folder of its owner's choice."
    : `${about.label_folder === null ? "Nothing is kept" : "Labels are saved, nothing else is kept"}: scan and result are deleted with the next scan, and when the page is closed.`;
  listen();
  if (about.label_folder === null) return;
  get("scans").hidden = false;
  get("scans-folder").textContent = about.label_folder;
  labelling.listen(openScan);
  await labelling.list(openScan);
}

begin().catch(() => fail("", "The server does not answer. Is it still running?"));
