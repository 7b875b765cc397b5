// The scan with its layers, drawn by NiiVue. One viewer, made with the first scan.

const COLOURS = [[240, 120, 60], [64, 156, 255], [80, 200, 120], [245, 205, 70], [190, 120, 230], [60, 205, 205], [240, 110, 160], [170, 190, 90]];
const LAYERS = ["classes", "uncertainty"]; // volume 0 is the scan
const SURE = 0.1 * 255; // uncertainty below is not drawn
// Voxels in RAS order; the right side of the patient is on the left of the picture.
const STEPS = { ArrowLeft: [1, 0, 0], ArrowRight: [-1, 0, 0], ArrowUp: [0, 1, 0], ArrowDown: [0, -1, 0], PageUp: [0, 0, 1], PageDown: [0, 0, -1] };

let viewer = null;

export const colours = (index) => COLOURS[(index - 1) % COLOURS.length];

export function canDraw() {
  return "niivue" in window && Boolean(document.createElement("canvas").getContext("webgl2"));
}

export async function draw(canvas, job, opacity) {
  viewer ??= await make(canvas);
  const address = (name) => ({ url: `/jobs/${job.id}/view/${name}.nii.gz`, name: `${name}.nii.gz` });
  await viewer.loadVolumes([
    { ...address("scan"), colormap: "gray", cal_min: 0, cal_max: 255 },
    { ...address("classes"), colormap: "gray", opacity: opacity.classes },
    { ...address("uncertainty"), colormap: "plasma", opacity: opacity.uncertainty, cal_min: SURE, cal_max: 255 },
  ]);
  const indices = [0, ...job.result.classes.map((c) => c.index)];
  const channel = (k) => indices.map((i) => (i ? colours(i)[k] : 0));
  viewer.volumes[1].setColormapLabel({
    R: channel(0), G: channel(1), B: channel(2), A: indices.map((i) => (i ? 255 : 0)), I: indices,
    labels: ["", ...job.result.classes.map((c) => c.name)],
  });
  viewer.opts.isOrientationTextVisible = job.result.oriented;
  viewer.scene.crosshairPos = viewer.vox2frac(job.result.focus);
  viewer.updateGLVolume();
}

export function setLayer(name, opacity) {
  const index = LAYERS.indexOf(name) + 1;
  if (viewer?.volumes[index]) viewer.setOpacity(index, opacity);
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
  while (viewer?.volumes.length) viewer.removeVolume(viewer.volumes[0]);
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
    show3Dcrosshair: true,
    yoke3Dto2DZoom: true,
  });
  await made.attachToCanvas(canvas);
  canvas.addEventListener("keydown", (event) => {
    const step = STEPS[event.key];
    if (!step || !made.volumes.length) return;
    event.preventDefault();
    event.stopImmediatePropagation();
    made.moveCrosshairInVox(...step);
  }, { capture: true });
  return made;
}
