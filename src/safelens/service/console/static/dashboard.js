// The slider of the what-if: one point after the other, in words and in the drawing.

const slider = document.getElementById("tau");
if (slider) {
  const points = JSON.parse(slider.dataset.points);
  const places = JSON.parse(slider.dataset.places);
  const at = document.getElementById("at");
  const percent = share => `${(100 * share).toFixed(1)} %`;

  const show = () => {
    const point = points[slider.value], [x] = places[slider.value];
    at.setAttribute("x1", x);
    at.setAttribute("x2", x);
    const tau = point.tau > 1 ? "Everything to S2" : `tau ${point.tau.toFixed(4)}`;
    const wrong =
      point.least === point.most
        ? `${percent(point.least)} wrong`
        : `about ${percent(point.guess)} wrong (${percent(point.least)} to ${percent(point.most)})`;
    const words =
      `${tau}: ${percent(point.escalated)} to S2, ${point.seconds.toFixed(2)} s a video, ${wrong}. ` +
      `S1 alone errs on ${point.wrong} of ${point.alone}.`;
    document.getElementById("what").textContent = words;
    slider.setAttribute("aria-valuetext", tau);
  };
  slider.addEventListener("input", show);
  show();
}
