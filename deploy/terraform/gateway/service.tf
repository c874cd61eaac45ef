# The replicas: containers that know nothing but names, in as many zones as there are subnets.

data "aws_region" "this" {}

locals {
  port        = 4000
  store_ports = { database = 5432, cache = 6379 }
  environment = merge(
    { for key, value in var.settings : "WOOTZ_${key}" => value },
    {
      WOOTZ_SERVER__DRAIN_SECONDS   = tostring(var.drain_seconds)
      WOOTZ_SERVER__TRUSTED_PROXIES = jsonencode(var.balancer_networks)
    },
  )
}

resource "aws_cloudwatch_log_group" "this" {
  name              = "/wootz/${var.name}"
  retention_in_days = var.log_days
}

# What starts the container: it may fetch the image and write the log, and reads no secret.
resource "aws_iam_role" "execution" {
  name               = "${var.name}-execution"
  assume_role_policy = data.aws_iam_policy_document.tasks_may_assume.json
}

resource "aws_iam_role_policy_attachment" "execution" {
  role       = aws_iam_role.execution.name
  policy_arn = "arn:aws:iam::aws:policy/service-role/AmazonECSTaskExecutionRolePolicy"
}

resource "aws_ecs_cluster" "this" {
  name = var.name

  setting {
    name  = "containerInsights"
    value = "enabled"
  }
}

resource "aws_ecs_task_definition" "this" {
  family                   = var.name
  requires_compatibilities = ["FARGATE"]
  network_mode             = "awsvpc"
  cpu                      = var.task.cpu
  memory                   = var.task.memory
  task_role_arn            = aws_iam_role.task.arn
  execution_role_arn       = aws_iam_role.execution.arn

  container_definitions = jsonencode([{
    name                   = "gateway"
    image                  = var.image
    essential              = true
    user                   = "10001:10001"
    readonlyRootFilesystem = true
    linuxParameters        = { initProcessEnabled = true, capabilities = { drop = ["ALL"] } }
    environment            = [for key in sort(keys(local.environment)) : { name = key, value = local.environment[key] }]
    portMappings           = [{ containerPort = local.port, protocol = "tcp" }]
    # The drain, what cut answers get for their records, a margin.
    stopTimeout = var.drain_seconds + 20
    healthCheck = {
      command     = ["CMD", "python3", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:4000/healthz', timeout=4)"]
      interval    = 30
      timeout     = 5
      startPeriod = 60
      retries     = 3
    }
    mountPoints = [
      { sourceVolume = "home", containerPath = "/var/lib/wootz", readOnly = false },
      { sourceVolume = "tmp", containerPath = "/tmp", readOnly = false },
    ]
    logConfiguration = {
      logDriver = "awslogs"
      options = {
        awslogs-group         = aws_cloudwatch_log_group.this.name
        awslogs-region        = data.aws_region.this.name
        awslogs-stream-prefix = "gateway"
      }
    }
  }])

  volume {
    name = "home"
  }

  volume {
    name = "tmp"
  }
}

resource "aws_ecs_service" "this" {
  name            = var.name
  cluster         = aws_ecs_cluster.this.id
  task_definition = aws_ecs_task_definition.this.arn
  launch_type     = "FARGATE"
  desired_count   = var.replicas.min

  # Fargate spreads over the subnets' zones by itself.
  network_configuration {
    subnets          = values(var.subnets)
    security_groups  = [aws_security_group.gateway.id]
    assign_public_ip = false
  }

  load_balancer {
    target_group_arn = aws_lb_target_group.this.arn
    container_name   = "gateway"
    container_port   = local.port
  }

  deployment_minimum_healthy_percent = 100
  deployment_maximum_percent         = 200

  deployment_circuit_breaker {
    enable   = true
    rollback = true
  }

  lifecycle {
    # The scaling below moves it; nothing else is ignored, so that drift is seen.
    ignore_changes = [desired_count]
  }

  depends_on = [aws_lb_listener.this, aws_iam_role_policy.read_secrets]
}

resource "aws_appautoscaling_target" "this" {
  service_namespace  = "ecs"
  scalable_dimension = "ecs:service:DesiredCount"
  resource_id        = "service/${aws_ecs_cluster.this.name}/${aws_ecs_service.this.name}"
  min_capacity       = var.replicas.min
  max_capacity       = var.replicas.max
}

resource "aws_appautoscaling_policy" "cpu" {
  name               = "${var.name}-cpu"
  policy_type        = "TargetTrackingScaling"
  service_namespace  = aws_appautoscaling_target.this.service_namespace
  scalable_dimension = aws_appautoscaling_target.this.scalable_dimension
  resource_id        = aws_appautoscaling_target.this.resource_id

  target_tracking_scaling_policy_configuration {
    target_value       = 60
    scale_out_cooldown = 60
    scale_in_cooldown  = 600

    predefined_metric_specification {
      predefined_metric_type = "ECSServiceAverageCPUUtilization"
    }
  }
}
