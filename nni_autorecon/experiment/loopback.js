// Preloaded into NNI's manager: whatever address a server of it asks for, it listens on this machine alone. So does the
// TensorBoard that it starts.
"use strict";
const { Server } = require("node:net");
const processes = require("node:child_process");
const { spawn } = processes;
const listen = Server.prototype.listen;

Server.prototype.listen = function (...given) {
    const callback = given.find((argument) => typeof argument === "function");
    const first = typeof given[0] === "function" ? undefined : given[0];
    const options = typeof first === "object" && first !== null ? first : { port: first };
    const hasPort = options.port === undefined || options.port === null || !Number.isNaN(Number(options.port));
    if (options.path !== undefined || options.fd !== undefined || options._handle || !hasPort) {
        return listen.apply(this, given); // no network address: a socket file or an inherited handle
    }
    return listen.call(this, { ...options, port: options.port ?? 0, host: "127.0.0.1" }, callback);
};

processes.spawn = function (command, words, ...rest) {
    const meant = command === "tensorboard" ? words.map((word) => word.replace("--bind_all", "--host=127.0.0.1")) : words;
    return spawn.call(this, command, meant, ...rest);
};
