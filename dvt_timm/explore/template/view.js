// Draws the page. `state` says what is seen; every change of it ends in `redraw`.

const KEPT = 12; // photos that stay decoded
const MODES = {
  pca: ["raw", "denoised", "First three principal components of the raw map as red, green and blue."],
  clusters: ["raw", "denoised", "Clusters of directions; those of both maps that share most patches have one color."],
  norm: ["raw", "denoised", "Norm of each patch, as a multiple of the median of its map."],
  taken: [
    "removed: PCA",
    "removed: norm",
    "Raw minus denoised, its mean taken off: its components, and its norm as a share of the median raw norm.",
  ],
};

const element = (id) => document.getElementById(id);
const readJson = (id) => JSON.parse(element(id).textContent);
const about = readJson("about");
const last = about.photos.length - 1;
const state = {
  photo: 0,
  second: Math.min(1, last),
  query: null, // {photo, index} of the patch that is compared
  held: false, // whether the patch stays where it is when the pointer moves
  mode: "pca",
  divider: 0.5, // share of the width that shows raw
  opacity: 0.85,
  grid: false,
};

// ---- photos ----

const decoded = new Map(); // the last ones that were looked at, the oldest first

function photoAt(index) {
  const photo = decoded.get(index) || new Photo(readJson(`photo-${index}`), about);
  decoded.delete(index);
  decoded.set(index, photo);
  if (decoded.size > KEPT) decoded.delete(decoded.keys().next().value);
  return photo;
}

function show(index) {
  const photo = photoAt(index);
  state.photo = index;
  if (state.second === index) state.second = index < last ? index + 1 : Math.max(0, index - 1);
  state.query = { photo: index, index: photo.salient };
  state.held = false;
  for (const button of element("strip").children) {
    button.setAttribute("aria-current", String(Number(button.dataset.index) === index));
  }
  element("strip").children[index].scrollIntoView({ block: "nearest", inline: "nearest" });
  redraw();
  Promise.all([photo.ready, photoAt(state.second).ready]).then(redraw);
}

function showSecond(index) {
  if (state.query.photo === state.second) state.query = { photo: state.photo, index: photoAt(state.photo).salient };
  state.second = index;
  redraw();
  photoAt(index).ready.then(redraw);
}

// ---- drawing ----

let isDue = false;

function redraw() {
  if (isDue) return;
  isDue = true;
  requestAnimationFrame(() => {
    isDue = false;
    drawView();
    drawSimilarities();
  });
}

// Make a canvas as large as a photo, with the photo on it.
function begin(canvas, photo) {
  if (canvas.width !== photo.width || canvas.height !== photo.height) {
    canvas.width = photo.width;
    canvas.height = photo.height;
  }
  const context = canvas.getContext("2d");
  context.imageSmoothingEnabled = false;
  context.globalAlpha = 1;
  context.drawImage(photo.picture, 0, 0, photo.width, photo.height);
  return context;
}

// Lay the colors of patches over the photo, between two places across it.
function overlay(context, photo, colors, from = 0, to = photo.width) {
  context.save();
  context.beginPath();
  context.rect(from, 0, to - from, photo.height);
  context.clip();
  context.globalAlpha = state.opacity;
  context.drawImage(colors, 0, 0, photo.width, photo.height);
  context.restore();
}

function drawGrid(context, photo) {
  context.strokeStyle = "#ffffff66";
  context.lineWidth = 1;
  context.beginPath();
  for (let x = photo.cellWidth; x < photo.width; x += photo.cellWidth) {
    context.moveTo(x + 0.5, 0);
    context.lineTo(x + 0.5, photo.height);
  }
  for (let y = photo.cellHeight; y < photo.height; y += photo.cellHeight) {
    context.moveTo(0, y + 0.5);
    context.lineTo(photo.width, y + 0.5);
  }
  context.stroke();
}

// A white frame in a dark outline around a patch; a circle around what matches it best.
function mark(context, photo, index, isMatch) {
  const [x, y] = [(index % photo.columns) * photo.cellWidth, Math.floor(index / photo.columns) * photo.cellHeight];
  const unit = photo.width / (context.canvas.clientWidth || 400); // a pixel of the screen
  for (const [width, color] of [[5 * unit, "#000"], [2.5 * unit, "#fff"]]) {
    context.lineWidth = width;
    context.strokeStyle = color;
    context.beginPath();
    if (isMatch) {
      context.arc(x + photo.cellWidth / 2, y + photo.cellHeight / 2, photo.cellWidth / 2 + 4 * unit, 0, 2 * Math.PI);
    } else {
      context.rect(x - 3 * unit, y - 3 * unit, photo.cellWidth + 6 * unit, photo.cellHeight + 6 * unit);
    }
    context.stroke();
  }
}

function drawView() {
  const photo = photoAt(state.photo);
  const context = begin(element("main"), photo);
  const [left, right] = photo.layers[state.mode];
  const middle = state.divider * photo.width;
  overlay(context, photo, left, 0, middle);
  overlay(context, photo, right, middle, photo.width);
  if (state.grid) drawGrid(context, photo);
  if (state.query.photo === state.photo) mark(context, photo, state.query.index, false);
  describeView(photo);
}

function describeView(photo) {
  const [left, right, caption] = MODES[state.mode];
  const share = `${(100 * state.divider).toFixed(2)}%`;
  element("stage").style.maxWidth = `calc(75vh * ${photo.width / photo.height})`;
  element("handle").style.left = share;
  element("divider").value = 100 * state.divider;
  element("left-tag").hidden = state.divider < 0.15;
  element("right-tag").hidden = state.divider > 0.85;
  for (const [id, text] of [["left", left], ["right", right]]) {
    element(`${id}-tag`).textContent = element(`${id}-name`).textContent = text;
  }
  const removed = `${Math.round(100 * photo.removed)} % of its variance removed`;
  element("photo-name").textContent = photo.name;
  const sides = `${left} left and ${right} right of the divider`;
  element("main").setAttribute("aria-label", `${photo.name}, ${sides}; arrow keys move the patch`);
  element("caption").textContent = `${caption} ${photo.rows} x ${photo.columns} patches, ${removed}.`;
  const ends = { norm: photo.ends.norm, taken: photo.ends.taken }[state.mode];
  element("scale").hidden = !ends;
  if (!ends) return;
  const unit = state.mode === "norm" ? " x median" : " of the raw median";
  element("scale-low").textContent = ends[0].toFixed(2) + unit;
  element("scale-high").textContent = ends[1].toFixed(2) + unit;
}

function placeOf(photo, index) {
  return `row ${Math.floor(index / photo.columns)}, column ${index % photo.columns}`;
}

function drawSimilarities() {
  const from = photoAt(state.query.photo);
  const hold = state.held ? "held: click it or press Space to let it go" : "click or press Space to hold it";
  element("query").textContent = `Patch at ${placeOf(from, state.query.index)} of ${from.name}; ${hold}.`;
  element("second").value = state.second;
  for (const option of element("second").options) option.disabled = Number(option.value) === state.photo;
  for (const row of ["raw", "denoised"]) {
    drawSimilarity("same", row, state.photo);
    if (last > 0) drawSimilarity("other", row, state.second);
  }
}

function drawSimilarity(place, row, index) {
  const [photo, from] = [photoAt(index), photoAt(state.query.photo)];
  const cosines = photo.maps[row].similarity(from.maps[row], state.query.index);
  const canvas = element(`${place}-${row}`);
  const context = begin(canvas, photo);
  overlay(context, photo, photo.paintCosines(cosines, about.colormap));
  if (state.grid) drawGrid(context, photo);
  const isHome = index === state.query.photo;
  const best = cosines.indexOf(Math.max(...cosines));
  mark(context, photo, isHome ? state.query.index : best, !isHome);
  const similar = cosines.filter((cosine) => cosine > 0.5).length / cosines.length;
  const text = isHome
    ? `${Math.round(100 * similar)} % of patches above 0.5`
    : `best match ${cosines[best].toFixed(2)} at ${placeOf(photo, best)}`;
  const caption = canvas.nextElementSibling;
  const title = document.createElement("b");
  title.textContent = row;
  caption.replaceChildren(title, `: ${text}`);
  canvas.setAttribute("aria-label", `${photo.name}, similarity of ${row} features: ${text}`);
}
