// The scan with its layers, drawn by NiiVue. One viewer, made with the first scan.

const COLOURS = [[240, 120, 60], [64, 156, 255], [80, 200, 120], [245, 205, 70], [190, 120, 230], [60, 205, 205], [240, 110, 160], [170, 190, 90]];
const LAYERS = ["classes", "uncertainty"]; // volume 0 is the scan
const SURE = 0.1 * 255; // uncertainty below is not drawn
const LABEL_INTENT = 1002; // of NIfTI: NiiVue outlines only such layers
const FAINT = 0.004; // NiiVue outlines no layer that is not drawn at all
// Voxels in RAS order; the right side of the patient is on the left of the picture.
const STEPS = { ArrowLeft: [1, 0, 0], ArrowRight: [-1, 0, 0], ArrowUp: [0, 1, 0], ArrowDown: [0, -1, 0], PageUp: [0, 0, 1], PageDown: [0, 0, -1] };

let viewer = null;
let indices = []; // of the classes, the background first
let tool = { name: "look", value: 1 };
let history = { now: 0, back: 0 }; // a number for the drawing as it is, and how many steps lead back

// Every class has its own: behind the first few, hues a golden angle apart, in three lightnesses.
export function colours(index) {
  if (index <= COLOURS.length) return COLOURS[index - 1];
  const hue = (index * 137.508) % 360;
  const light = [0.62, 0.45, 0.76][index % 3];
  const part = (n) => {
    const place = (n + hue / 30) % 12;
    return Math.round(255 * (light - 0.7 * Math.min(light, 1 - light) * Math.max(-1, Math.min(place - 3, 9 - place, 1))));
  };
  return [part(0), part(8), part(4)];
}

export function canDraw() {
  return "niivue" in window && Boolean(document.createElement("canvas").getContext("webgl2"));
}

const address = (id, name) => ({ url: `/jobs/${id}/view/${name}.nii.gz`, name: `${name}.nii.gz` });

function table(labels) {
  const channel = (k) => indices.map((i) => (i ? colours(i)[k] : 0));
  return { R: channel(0), G: channel(1), B: channel(2), A: indices.map((i) => (i ? 255 : 0)), I: indices, labels };
}

export async function draw(canvas, job, look) {
  viewer ??= await make(canvas);
  await viewer.loadVolumes([
    { ...address(job.id, "scan"), colormap: "gray", cal_min: 0, cal_max: 255 },
    { ...address(job.id, "classes"), colormap: "gray" },
    { ...address(job.id, "uncertainty"), colormap: "plasma", cal_min: SURE, cal_max: 255 },
  ]);
  indices = [0, ...job.result.classes.map((c) => c.index)];
  viewer.volumes[1].hdr.intent_code = LABEL_INTENT;
  viewer.volumes[1].setColormapLabel(table(["", ...job.result.classes.map((c) => c.name)]));
  viewer.opts.isOrientationTextVisible = job.result.oriented;
  viewer.scene.crosshairPos = viewer.vox2frac(job.result.focus);
  for (const name of LAYERS) setLayer(name, look[name], look.outline);
}

// outline: whether the classes are drawn as outlines.
export function setLayer(name, opacity, outline) {
  const index = LAYERS.indexOf(name) + 1;
  if (!viewer?.volumes[index]) return;
  if (name === "classes") viewer.opts.atlasOutline = outline ? Math.min(1, 2 * opacity) : 0; // thin lines
  viewer.setOpacity(index, name === "classes" && outline && opacity ? FAINT : opacity);
}

// name: of a single view, or "THREE": the axial plane large, the others beside it.
export function setPlanes(name) {
  const { AXIAL, CORONAL, SAGITTAL, MULTIPLANAR } = window.niivue.SLICE_TYPE;
  if (name !== "THREE") {
    viewer?.clearCustomLayout();
    return viewer?.setSliceType(window.niivue.SLICE_TYPE[name]);
  }
  viewer?.setSliceType(MULTIPLANAR);
  return viewer?.setCustomLayout([
    { sliceType: AXIAL, position: [0, 0, 0.6, 1] }, // left, top, width, height
    { sliceType: CORONAL, position: [0.61, 0, 0.39, 0.495] },
    { sliceType: SAGITTAL, position: [0.61, 0.505, 0.39, 0.495] },
  ]);
}

export function clear() {
  clearDrawing();
  while (viewer?.volumes.length) viewer.removeVolume(viewer.volumes[0]);
}

// --- drawing ---

// start: "empty", or the view of the job to begin with: "model" or "label".
export async function drawFrom(start, id) {
  const image = start === "empty" ? null : await window.niivue.NVImage.loadFromUrl(address(id, start === "model" ? "classes" : start));
  if (!viewer.volumes.length) return; // the scan was left meanwhile
  if (image === null) viewer.createEmptyDrawing();
  else viewer.loadDrawing(image);
  viewer.setDrawColormap(table(indices.map(String)));
  history = { now: history.now + 1, back: 0 };
}

export function clearDrawing() {
  setTool("look", 1, 1);
  if (viewer?.drawBitmap) viewer.closeDrawing();
}

// A number that changes with the drawing.
export const drawn = () => history.now;

export function setTool(name, value, size) {
  tool = { name, value };
  if (!viewer) return;
  viewer.opts.penSize = size;
  viewer.setDrawingEnabled(["pen", "ring", "eraser"].includes(name));
  viewer.setPenValue(name === "eraser" ? 0 : value, name === "ring");
}

export function setDrawing(opacity, outline) {
  if (!viewer) return;
  viewer.drawRimOpacity = outline ? Math.min(1, 2 * opacity) : -1;
  viewer.setDrawOpacity(outline && opacity ? FAINT : opacity);
}

export function undo() {
  if (!history.back) return;
  viewer.drawUndo();
}

// The drawing as a NIfTI in gzip, on the grid of the scan.
export async function drawnBytes() {
  const bytes = await viewer.saveImage({ filename: "", isSaveDrawing: true });
  const packed = new Blob([bytes]).stream().pipeThrough(new CompressionStream("gzip"));
  return new Response(packed).blob();
}

function changed(action) {
  const back = { draw: Math.min(history.back + 1, viewer.opts.maxDrawUndoBitmaps - 1), undo: history.back - 1 }[action];
  if (back !== undefined) history = { now: history.now + 1, back };
}

// Fills what lies around a place in its slice, as far as the drawing is the same there.
function fill(event) {
  if (tool.name !== "fill" || !viewer.drawBitmap) return;
  const [x, y] = [event.offsetX * viewer.uiData.dpr, event.offsetY * viewer.uiData.dpr];
  for (const [i, slice] of viewer.screenSlices.entries()) {
    const place = slice.axCorSag > 2 ? [-1] : viewer.screenXY2TextureFrac(x, y, i, true);
    if (place[0] < 0) continue;
    const voxel = viewer.frac2vox(place);
    if (!fillSlice(viewer.drawBitmap, viewer.back.dimsRAS.slice(1, 4), voxel, 2 - slice.axCorSag, tool.value)) return;
    viewer.drawAddUndoBitmap();
    viewer.refreshDrawing(true);
    changed("draw");
    return;
  }
}

// across: the axis (0, 1, 2) through the slice. Returns whether anything was filled: what reaches the edge of the slice is open.
export function fillSlice(bitmap, dims, voxel, across, value) {
  const strides = [1, dims[0], dims[0] * dims[1]];
  const [u, v] = [0, 1, 2].filter((axis) => axis !== across);
  const base = voxel[across] * strides[across];
  const at = (a, b) => base + a * strides[u] + b * strides[v];
  const old = bitmap[at(voxel[u], voxel[v])];
  if (old === value) return false;
  const found = new Set();
  const waiting = [[voxel[u], voxel[v]]];
  while (waiting.length) {
    const [a, b] = waiting.pop();
    if (a < 0 || b < 0 || a >= dims[u] || b >= dims[v]) {
      if (old === 0) return false;
      continue;
    }
    const index = at(a, b);
    if (bitmap[index] !== old || found.has(index)) continue;
    found.add(index);
    waiting.push([a + 1, b], [a - 1, b], [a, b + 1], [a, b - 1]);
  }
  for (const index of found) bitmap[index] = value;
  return true;
}

async function make(canvas) {
  const made = new window.niivue.Niivue({
    backColor: [0, 0, 0, 1],
    crosshairColor: [1, 1, 1, 0.5],
    crosshairWidth: 0.25,
    crosshairWidthUnit: "percent",
    dragAndDropEnabled: false, // the page takes drops
    fontColor: [1, 1, 1, 0.9],
    isColorbar: false,
    isRadiologicalConvention: true, // the patient's right side is on the left, as clinics look at scans
    loadingText: "",
    logLevel: "error",
    maxDrawUndoBitmaps: 16,
    show3Dcrosshair: true,
    yoke3Dto2DZoom: true,
  });
  await made.attachToCanvas(canvas);
  made.onDrawingChanged = changed;
  canvas.addEventListener("click", fill);
  canvas.addEventListener("keydown", (event) => {
    const step = STEPS[event.key];
    if (!step || !made.volumes.length) return;
    event.preventDefault();
    event.stopImmediatePropagation();
    made.moveCrosshairInVox(...step);
  }, { capture: true });
  return made;
}
