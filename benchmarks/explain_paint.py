"""From hover to paint: how long the page works until the cell under the pointer is on the screen.

    python benchmarks/explain_paint.py

At 64×56×56, the largest volume that the page offers, and on the layers of a network. What is measured
is the handler of the pointer's move with the layout that it causes, the same with the frame that
follows (paint), and a frame in which nothing changed; not the wait for the screen's next refresh. The
aim is 16 ms, one refresh. Needs playwright and a Chromium, which paints without a graphics card here.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from statistics import median, quantiles

sys.path.append(str(Path(__file__).parents[1] / "tests"))

from browsing import Tab, chromium

from onebyone.explaining.explaining import explain

MOVES = 200
CASES = {
    "64×56×56, screen 1": ("1?size=64x56x56x4", "#pixel .map canvas"),
    "64×56×56, screen 2": ("2?size=64x56x56x4", "#sweep-maps canvas"),
    "6×5×5, screen 3": ("3", "#sibling-one .scene canvas:last-child"),
    "photo to sepia": ("4?layer=sepia", "#photo canvas"),
    "a network's layer": ("4?layer=layer0", "#photo canvas"),
}
MEASURE = """async ([selector, moves]) => {
    const canvas = document.querySelector(selector);
    const box = canvas.getBoundingClientRect();
    const frame = () => new Promise((resolve) => requestAnimationFrame(() => {
        const begun = performance.now();
        const channel = new MessageChannel();
        channel.port1.onmessage = () => resolve(performance.now() - begun);
        channel.port2.postMessage(0);
    }));
    const [script, painted, idle] = [[], [], []];
    for (let i = 0; i < moves; i++) {
        const at = { clientX: box.left + box.width * ((i * 0.37) % 1),
                     clientY: box.top + box.height * ((i * 0.61) % 1), bubbles: true };
        const begun = performance.now();
        canvas.dispatchEvent(new PointerEvent("pointermove", at));
        document.body.offsetHeight;
        script.push(performance.now() - begun);
        painted.push(script.at(-1) + await frame());
        idle.push(await frame());
    }
    return [script, painted, idle];
}"""


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, chromium() as browser:
        path = Path(folder, "page.html")
        explain(None, None, path, latency=False)
        for name, (state, selector) in CASES.items():
            tab = Tab(browser, path)
            found = tab.open(state).page.evaluate(MEASURE, [selector, MOVES])
            tab.close()
            said = ", ".join(
                f"{what} {median(times):5.1f} ms (95 % below {quantiles(times, n=20)[-1]:.1f})"
                for what, times in zip(
                    ("script and layout", "with paint", "idle frame"), found, strict=True
                )
            )
            print(f"{name:20} {said}")


if __name__ == "__main__":
    main()
