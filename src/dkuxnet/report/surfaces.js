"use strict";
// Truth and prediction as surfaces side by side in NiiVue, turned together. Where it cannot run, the pictures stay.
(async () => {
  const room = document.getElementById("surfaces");
  if (!room || !document.createElement("canvas").getContext("webgl2")) return;
  const canvas = room.querySelector("canvas");
  const boxes = [...room.querySelectorAll(".classes input")];
  const cases = JSON.parse(document.getElementById("surfaces-data").textContent);
  const SEE_THROUGH = 0.4;
  const KEYS = { ArrowLeft: [-6, 0, 1], ArrowRight: [6, 0, 1], ArrowUp: [0, -6, 1], ArrowDown: [0, 6, 1], "+": [0, 0, 1.1], "-": [0, 0, 1 / 1.1] };
  // Without its own mouse control, which would keep the wheel from scrolling the page.
  const nv = new niivue.Niivue({ show3Dcrosshair: false, isOrientationTextVisible: false, interactive: false, logLevel: "error" });
  let [wanted, sides] = [0, []]; // the case chosen last; meshes of truth and of prediction, the smallest structure first

  nv.drawScene = () => { // the scene twice, each half of the canvas with one side's meshes
    nv.gl.clearColor(1, 1, 1, 1);
    nv.gl.clear(nv.gl.COLOR_BUFFER_BIT);
    sides.forEach((side, i) => {
      const visible = side.filter((mesh) => boxes[mesh.number]?.checked ?? true);
      for (const mesh of nv.meshes) mesh.visible = visible.includes(mesh);
      for (const mesh of visible) mesh.opacity = mesh === visible[0] ? 1 : SEE_THROUGH; // of what may hide the smallest
      nv.draw3D([(i * canvas.width) / 2, 0, canvas.width / 2, canvas.height]);
    });
  };

  async function read(data, number, colour) {
    const rgba = [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16)).concat(255);
    const content = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0)).buffer;
    const mesh = await niivue.NVMesh.readMesh(content, "surface.mz3", nv.gl, 1, new Uint8Array(rgba));
    return Object.assign(mesh, { number, meshShaderIndex: nv.meshShaderNameToNumber("Diffuse") });
  }

  async function open(number) {
    wanted = number;
    await ready;
    const { order, meshes, colours, azimuth, elevation } = cases[number] ?? { meshes: [] };
    const found = await Promise.all(meshes.map((side, i) => Promise.all(order.filter((k) => side[k]).map((k) => read(side[k], k, colours[i][k])))));
    if (wanted !== number) return; // another case was chosen meanwhile
    sides = [];
    for (const mesh of [...nv.meshes]) nv.removeMesh(mesh);
    for (const mesh of found.flat()) nv.addMesh(mesh); // drawn in this order: a solid one before those through which it is seen
    sides = found;
    Object.assign(nv.scene, { renderAzimuth: azimuth ?? 0, renderElevation: elevation ?? 0, volScaleMultiplier: 1 });
    nv.drawScene();
    room.classList.toggle("empty", !meshes.length);
    room.dataset.shown = number;
  }

  room.hidden = false;
  const ready = nv.attachToCanvas(canvas, true);
  document.addEventListener("case", (event) => open(event.detail));
  try {
    await open(0);
  } catch {
    return (room.hidden = true);
  }
  document.body.classList.add("live-surfaces");

  function turn(azimuth, elevation, zoom = 1) {
    nv.scene.volScaleMultiplier *= zoom;
    nv.setRenderAzimuthElevation(nv.scene.renderAzimuth + azimuth, Math.max(-90, Math.min(90, nv.scene.renderElevation + elevation)));
  }
  canvas.addEventListener("pointerdown", (event) => canvas.setPointerCapture(event.pointerId));
  canvas.addEventListener("pointermove", (event) => {
    if (canvas.hasPointerCapture(event.pointerId)) turn(event.movementX * 0.6, event.movementY * 0.6);
  });
  canvas.addEventListener("keydown", (event) => {
    if (!KEYS[event.key]) return;
    event.preventDefault();
    turn(...KEYS[event.key]);
  });
  for (const box of boxes) box.addEventListener("change", () => nv.drawScene());
})();
