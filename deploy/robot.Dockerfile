# The computer at the robot: `ulna deploy`, without torch. Built from the repository's root:
#   docker build -f deploy/robot.Dockerfile -t ulna-robot .
#   docker run -it --network host --device /dev/ttyACM0 --device /dev/video0 -v $PWD/my-robot:/robot ulna-robot \
#       deploy --robot /robot/robot.toml --server ws://gpu:8000 --task "pick up the cube"
FROM python:3.12-slim-bookworm AS build
# those of the packages that have no wheel for this processor are compiled
RUN apt-get update && apt-get install -y --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
WORKDIR /src
RUN python -m venv /opt/ulna
COPY requirements-robot.lock .
RUN /opt/ulna/bin/pip install --no-cache-dir --require-hashes -r requirements-robot.lock
COPY pyproject.toml README.md LICENSE ./
COPY robot robot
COPY drivers drivers
COPY datasets datasets
COPY policies policies
COPY sim sim
RUN /opt/ulna/bin/pip install --no-cache-dir --no-deps .

FROM python:3.12-slim-bookworm
# what OpenCV's windows would want, which its import asks for; and what Pinocchio computes with
RUN apt-get update && apt-get install -y --no-install-recommends libgl1 libglib2.0-0 libgomp1 && rm -rf /var/lib/apt/lists/*
COPY --from=build /opt/ulna /opt/ulna
RUN useradd --create-home --groups dialout,video ulna
USER ulna
WORKDIR /robot
ENTRYPOINT ["/opt/ulna/bin/ulna"]
CMD ["deploy", "--help"]
