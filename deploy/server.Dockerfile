# The computer with the GPU: `ulna serve`. Built from the repository's root:
#   docker build -f deploy/server.Dockerfile -t ulna-server .
#   docker run --gpus all -p 8000:8000 -v $PWD/runs/x/flow:/policy:ro -v $PWD/keys:/keys ulna-server
# keys/ holds `key`, which is made where it is not there; it must be writable by user 1000 then.
FROM python:3.12-slim-bookworm AS build
RUN apt-get update && apt-get install -y --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
WORKDIR /src
RUN python -m venv /opt/ulna
COPY requirements.lock .
RUN /opt/ulna/bin/pip install --no-cache-dir --no-deps --require-hashes -r requirements.lock
COPY pyproject.toml README.md LICENSE ./
COPY robot robot
COPY drivers drivers
COPY datasets datasets
COPY policies policies
COPY sim sim
RUN /opt/ulna/bin/pip install --no-cache-dir --no-deps --no-build-isolation .

FROM python:3.12-slim-bookworm
# what OpenCV's windows would want, which its import asks for; and what Pinocchio computes with
RUN apt-get update && apt-get install -y --no-install-recommends libgl1 libglib2.0-0 libgomp1 && rm -rf /var/lib/apt/lists/*
COPY --from=build /opt/ulna /opt/ulna
RUN useradd --create-home ulna
USER ulna
EXPOSE 8000
HEALTHCHECK --start-period=60s CMD ["/opt/ulna/bin/python", "-c", "import socket; socket.create_connection(('127.0.0.1', 8000), 3)"]
ENTRYPOINT ["/opt/ulna/bin/ulna"]
CMD ["serve", "/policy", "--host", "0.0.0.0", "--port", "8000", "--key-file", "/keys/key", "--tls"]
