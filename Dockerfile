# postbus: one process that takes mail in (2525) and answers HTTP (8080), as user 65532 on a read-only root.
#
#   docker build -t postbus .
#   docker run --read-only --tmpfs /tmp -p 2525:2525 -p 8080:8080 -v postbus:/var/spool/postbus postbus
#
# Both stages stand on the same Python, so that the virtual environment finds its interpreter where it was made; the first has a C compiler
# too, which compiles smtp/, event/ and most of bridge/ (pyproject.toml says why) and stays behind. Any pair of images with Python 3.11 or
# later in the same place, venv and pip will do, and without a compiler --build-arg COMPILED=false; pin them by digest for a build that can
# be repeated:
# --build-arg PYTHON_IMAGE=...@sha256:... --build-arg BUILD_IMAGE=...@sha256:...
ARG PYTHON_IMAGE=docker.io/library/python:3.13-slim-bookworm
ARG BUILD_IMAGE=docker.io/library/python:3.13-bookworm

FROM ${BUILD_IMAGE} AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /build
RUN python3 -m venv /opt/build && python3 -m venv --without-pip /opt/postbus && mkdir -p /var/spool/postbus
COPY requirements.lock requirements-build.lock ./
# Wheels only: no dependency is built here. A private package index is given as the build secret "pip", a pip.conf that stays out of every layer.
RUN --mount=type=secret,id=pip,target=/etc/pip.conf \
    /opt/build/bin/pip install --quiet --require-hashes --only-binary :all: -r requirements-build.lock && \
    /opt/build/bin/pip --python /opt/postbus/bin/python install --quiet --require-hashes --only-binary :all: -r requirements.lock
COPY pyproject.toml README.md LICENSE ./
COPY src src
ARG COMPILED=true
RUN HATCH_BUILD_HOOK_ENABLE_MYPYC=${COMPILED} /opt/build/bin/pip wheel --quiet --no-deps --no-index --no-build-isolation --wheel-dir dist . && \
    /opt/build/bin/pip --python /opt/postbus/bin/python install --quiet --no-deps --no-index dist/*.whl && \
    /opt/build/bin/pip --python /opt/postbus/bin/python check
# The embedded defaults listen on the loopback, where nobody outside the container would reach them.
RUN printf '%s\n' 'listeners: {smtp: {address: "0.0.0.0:2525"}}' 'sidecar: {address: "0.0.0.0:8080"}' 'spool: {folder: /var/spool/postbus/data}' > postbus.yaml

# Nothing is run from here on, so that an image for another architecture is assembled without emulating it.
FROM ${PYTHON_IMAGE}
ARG VERSION=0.1.0
ARG REVISION=unknown
ARG CREATED=1970-01-01T00:00:00Z
ARG PYTHON_IMAGE
LABEL org.opencontainers.image.title="postbus" \
      org.opencontainers.image.description="A Kubernetes-native bridge from inbound mail to events" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.created="${CREATED}" \
      org.opencontainers.image.base.name="${PYTHON_IMAGE}"
ENV PATH=/opt/postbus/bin:/usr/local/bin:/usr/bin:/bin HOME=/tmp PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
COPY --from=build /opt/postbus /opt/postbus
COPY --from=build /build/postbus.yaml /etc/postbus/postbus.yaml
COPY --from=build --chown=65532:65532 /var/spool/postbus /var/spool/postbus
WORKDIR /var/spool/postbus
USER 65532:65532
EXPOSE 2525 8080
VOLUME ["/var/spool/postbus"]
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=5s --start-period=20s CMD ["postbus", "healthcheck"]
ENTRYPOINT ["postbus"]
CMD ["run", "--config", "/etc/postbus/postbus.yaml"]
