# Who reaches whom. Nothing has a public address, and every rule names a group or one port.

resource "aws_security_group" "balancer" {
  name        = "${var.name}-balancer"
  description = "The internal balancer: clients in, replicas out"
  vpc_id      = var.vpc_id
}

resource "aws_security_group" "gateway" {
  name        = "${var.name}-gateway"
  description = "The replicas: the balancer in; providers, database and cache out"
  vpc_id      = var.vpc_id
}

resource "aws_security_group" "stores" {
  name        = "${var.name}-stores"
  description = "Database and cache: replicas in, nothing out"
  vpc_id      = var.vpc_id
}

resource "aws_vpc_security_group_ingress_rule" "clients" {
  for_each = var.client_security_groups

  security_group_id            = aws_security_group.balancer.id
  referenced_security_group_id = each.value
  description                  = each.key
  ip_protocol                  = "tcp"
  from_port                    = 443
  to_port                      = 443
}

resource "aws_vpc_security_group_egress_rule" "balancer_to_gateway" {
  security_group_id            = aws_security_group.balancer.id
  referenced_security_group_id = aws_security_group.gateway.id
  description                  = "replicas"
  ip_protocol                  = "tcp"
  from_port                    = local.port
  to_port                      = local.port
}

resource "aws_vpc_security_group_ingress_rule" "balancer_to_gateway" {
  security_group_id            = aws_security_group.gateway.id
  referenced_security_group_id = aws_security_group.balancer.id
  description                  = "balancer"
  ip_protocol                  = "tcp"
  from_port                    = local.port
  to_port                      = local.port
}

resource "aws_vpc_security_group_egress_rule" "providers" {
  security_group_id = aws_security_group.gateway.id
  description       = "providers, the secret store and the registry, by TLS"
  ip_protocol       = "tcp"
  from_port         = 443
  to_port           = 443
  cidr_ipv4         = "0.0.0.0/0"
}

resource "aws_vpc_security_group_egress_rule" "gateway_to_stores" {
  for_each = local.store_ports

  security_group_id            = aws_security_group.gateway.id
  referenced_security_group_id = aws_security_group.stores.id
  description                  = each.key
  ip_protocol                  = "tcp"
  from_port                    = each.value
  to_port                      = each.value
}

resource "aws_vpc_security_group_ingress_rule" "gateway_to_stores" {
  for_each = local.store_ports

  security_group_id            = aws_security_group.stores.id
  referenced_security_group_id = aws_security_group.gateway.id
  description                  = each.key
  ip_protocol                  = "tcp"
  from_port                    = each.value
  to_port                      = each.value
}
