# SPDX-License-Identifier: Apache-2.0
"""Serves a model with llama.cpp's server on a free port of the loopback interface, until its standard input ends.

    serve.py FILE

It prints its address when it takes requests.
"""

import os
import pathlib
import sys

import xllamacpp

file = pathlib.Path(sys.argv[1])
options = xllamacpp.CommonParams()
options.model.path = str(file)
options.model_alias = {file.stem}
options.hostnames = ["127.0.0.1"]
options.port = 0
options.n_ctx = 4 * 4096
options.n_parallel = 4
options.n_predict = 200
options.embedding = True
options.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
options.cache_prompt = False
options.cache_ram_mib = 0
options.fit_params = False
options.ui = False
options.verbosity = 2  # warnings and errors
options.cpuparams.n_threads = options.cpuparams_batch.n_threads = 1
options.sampling.temp = 0
options.sampling.seed = 1
server = xllamacpp.Server(options)
print(server.listening_address, flush=True)
sys.stdin.read()
os._exit(0)  # the server itself would wait for tasks that run
