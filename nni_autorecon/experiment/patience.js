// Preloaded into NNI's manager: it waits a minute for its tuner, not the ten seconds of which NNI makes an error: on a busy
// machine Python imports NNI for longer.
"use strict";
const wait = globalThis.setTimeout;
globalThis.setTimeout = (action, milliseconds, ...rest) =>
    wait(action, milliseconds === 10000 ? 60000 : milliseconds, ...rest);
