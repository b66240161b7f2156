// Preloaded into NNI's managers in tests: they wait a minute for their tuner, not the ten seconds of which NNI makes an
// error: on a busy machine Python imports NNI for longer.
"use strict";
const wait = globalThis.setTimeout;
globalThis.setTimeout = (action, milliseconds, ...rest) =>
    wait(action, milliseconds === 10000 ? 60000 : milliseconds, ...rest);
